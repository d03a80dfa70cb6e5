rule score:
    input:
        PLAN.prediction_file("{run}"),
        lambda wildcards: PLAN.prepared_dir(PLAN.runs[wildcards.run]) / "summary.json",
    output:
        PLAN.score_file("{run}"),
    log:
        f"logs/{STUDY}/score/{{run}}.log",
    priority: 10
    resources:
        mem_mb=1500,
        runtime=60,
        cpus_per_task=1,
    params:
        code=lambda wildcards: triggers.score_trigger(PLAN, PLAN.runs[wildcards.run]),
    message:
        "score {wildcards.run}"
    shell:
        "svp stage score --run {wildcards.run:q} &> {log:q}"
