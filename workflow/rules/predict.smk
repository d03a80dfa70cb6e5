rule predict:
    input:
        lambda wildcards: PLAN.predict_inputs(PLAN.runs[wildcards.run]),
    output:
        PLAN.prediction_file("{run}"),
    log:
        f"logs/{STUDY}/predict/{{run}}.log",
    priority: 20
    threads:
        lambda wildcards: jobs.cpus(
            PLAN.runs[wildcards.run],
            jobs.prediction_processes(PLAN.runs[wildcards.run]),
        )
    resources:
        mem_mb=lambda wildcards: jobs.memory_mb(
            PLAN.runs[wildcards.run],
            3000,
            jobs.prediction_processes(PLAN.runs[wildcards.run]),
        ),
        runtime=lambda wildcards: jobs.minutes(PLAN.runs[wildcards.run], 240),
        nodes=1,
        gpu=lambda wildcards: jobs.gpus(
            PLAN.runs[wildcards.run],
            jobs.prediction_processes(PLAN.runs[wildcards.run]),
        ),
        cpus_per_task=lambda wildcards: jobs.cpus(
            PLAN.runs[wildcards.run],
            jobs.prediction_processes(PLAN.runs[wildcards.run]),
        ),
    params:
        code=lambda wildcards: triggers.predict_trigger(PLAN, PLAN.runs[wildcards.run]),
    message:
        "predict {wildcards.run}"
    shell:
        "svp stage predict --run {wildcards.run:q} &> {log:q}"
