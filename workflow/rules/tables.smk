rule tables:
    input:
        scores=[PLAN.score_file(run) for run in PLAN.runs],
        efficiency=PLAN.efficiency_file,
    output:
        scores=PLAN.tables_dir / "scores.csv",
        efficiency=PLAN.tables_dir / "efficiency.csv",
        csv=PLAN.tables_dir / "main.csv",
        md=report(
            PLAN.tables_dir / "main.md",
            caption="../report/main.rst",
            category="Tables",
            labels={"table": "main", "format": "Markdown"},
        ),
        tex=PLAN.tables_dir / "main.tex",
    log:
        f"logs/{STUDY}/tables.log",
    resources:
        mem_mb=1500,
        runtime=30,
        cpus_per_task=1,
    params:
        code=lambda wildcards: triggers.report_trigger(PLAN, "harness.reporting.tables"),
    message:
        "write the tables"
    shell:
        "{SVP} tables --config {CONFIG} &> {log}"
