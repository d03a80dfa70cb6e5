# The learning-rate search: its trials are trained by the rules above, with fewer steps and without some images.
rule tune:
    input:
        lambda wildcards: [PLAN.weights(trial) for trial in PLAN.trials[wildcards.row]],
    output:
        PLAN.choice_file("{row}"),
    log:
        f"logs/{STUDY}/tune/{{row}}.log",
    priority: 70
    threads: lambda wildcards: jobs.cpus(PLAN.trial(wildcards.row))
    resources:
        mem_mb=lambda wildcards: jobs.memory_mb(PLAN.trial(wildcards.row), 3000),
        runtime=lambda wildcards: jobs.minutes(PLAN.trial(wildcards.row), 240),
        nodes=1,
        gpu=lambda wildcards: jobs.gpus(PLAN.trial(wildcards.row)),
        cpus_per_task=lambda wildcards: jobs.cpus(PLAN.trial(wildcards.row)),
    params:
        code=lambda wildcards: triggers.tune_trigger(PLAN, wildcards.row),
    message:
        "choose the learning rate of {wildcards.row}"
    shell:
        "svp stage tune --run {wildcards.row:q} &> {log:q}"
