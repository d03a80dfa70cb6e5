rule overlays:
    input:
        [PLAN.score_file(run.id) for run in PLAN.overlay_runs],
        [PLAN.prediction_file(run.id) for run in PLAN.overlay_runs],
        PLAN.superpixel_files(PLAN.overlay_runs),
    output:
        report(
            PLAN.figures_dir / "overlays.png",
            caption="../report/overlays.rst",
            category="Figures",
            labels={"figure": "overlays"},
        ),
        PLAN.figures_dir / "overlays.pdf",
    log:
        f"logs/{STUDY}/overlays.log",
    resources:
        mem_mb=1500,
        runtime=30,
        cpus_per_task=1,
    params:
        code=lambda wildcards: triggers.report_trigger(
            PLAN, "harness.reporting.overlays"
        ),
    message:
        "draw predictions over images"
    shell:
        "svp stage overlays &> {log:q}"
