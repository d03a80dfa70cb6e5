rule figures:
    input:
        rules.tables.output,
    output:
        report(
            expand(PLAN.figures_dir / "{name}.png", name=FIGURES),
            caption="../report/figures.rst",
            category="Figures",
        ),
        expand(PLAN.figures_dir / "{name}.pdf", name=FIGURES),
    log:
        f"logs/{STUDY}/figures.log",
    resources:
        mem_mb=1500,
        runtime=30,
        cpus_per_task=1,
    params:
        code=lambda wildcards: triggers.report_trigger(
            PLAN, "harness.reporting.figures"
        ),
    message:
        "draw the figures"
    shell:
        "{SVP} figures --config {CONFIG} &> {log}"
