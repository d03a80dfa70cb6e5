# One writer: a fresh SQLite store breaks when several jobs open it at once. The store itself is no output.
rule publish:
    input:
        rules.tables.output,
        rules.figures.output,
        rules.overlays.output,
    output:
        PLAN.published_file,
    log:
        f"logs/{STUDY}/publish.log",
    params:
        code=lambda wildcards: triggers.publish_trigger(PLAN),
    message:
        "publish to MLflow"
    shell:
        "svp stage publish &> {log:q}"
