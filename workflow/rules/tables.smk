rule tables:
    input:
        [PLAN.score_file(run) for run in PLAN.runs],
        PLAN.efficiency_file,
    output:
        [PLAN.tables_dir / name for name in TABLES],
        main=report(
            PLAN.tables_dir / "main.md",
            caption="../report/main.rst",
            category="Tables",
            labels={"table": "main"},
        ),
    log:
        f"logs/{STUDY}/tables.log",
    resources:
        mem_mb=lambda wildcards, attempt: jobs.tables_mb(len(PLAN.runs), attempt),
        runtime=lambda wildcards, attempt: jobs.tables_minutes(len(PLAN.runs), attempt),
        cpus_per_task=1,
    params:
        code=lambda wildcards: triggers.report_trigger(
            PLAN, "harness.reporting.tables", "harness.reporting.notes"
        ),
    message:
        "write the tables"
    shell:
        "svp stage tables &> {log:q}"
