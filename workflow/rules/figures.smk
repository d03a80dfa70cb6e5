rule figures:
    input:
        rules.tables.output,
        [PLAN.score_file(run) for run in PLAN.runs],
    output:
        [
            report(
                PLAN.figures_dir / f"{name}.png",
                caption=f"../report/{name}.rst",
                category="Figures",
                labels={"figure": name.replace("_", " ")},
            )
            for name in FIGURES
        ],
        [PLAN.figures_dir / f"{name}.pdf" for name in FIGURES],
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
        "svp stage figures &> {log:q}"
