rule predict:
    input:
        lambda wildcards: PLAN.predict_inputs(PLAN.runs[wildcards.run]),
    output:
        PLAN.prediction_file("{run}"),
    log:
        f"logs/{STUDY}/predict/{{run}}.log",
    priority: 20
    threads: lambda wildcards: PLAN.threads(PLAN.runs[wildcards.run])
    resources:
        mem_mb=3000,
        runtime=240,
        cpus_per_task=lambda wildcards: PLAN.threads(PLAN.runs[wildcards.run]),
    params:
        code=lambda wildcards: triggers.predict_trigger(PLAN, PLAN.runs[wildcards.run]),
    message:
        "predict {wildcards.run}"
    shell:
        "svp stage predict --run {wildcards.run} &> {log}"
