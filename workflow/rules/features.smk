rule features:
    input:
        lambda wildcards: PLAN.feature_inputs(wildcards.key),
    output:
        PLAN.feature_dir("{key}") / "index.json",
    log:
        "logs/shared/features/{key}.log",
    priority: lambda wildcards: 85 if wildcards.key.startswith("sam-") else 80
    threads: lambda wildcards: jobs.cpus(PLAN.owner(wildcards.key))
    resources:
        mem_mb=lambda wildcards: jobs.memory_mb(PLAN.owner(wildcards.key), 4000),
        runtime=lambda wildcards: jobs.minutes(PLAN.owner(wildcards.key), 240),
        nodes=1,
        gpu=lambda wildcards: jobs.gpus(PLAN.owner(wildcards.key)),
        cpus_per_task=lambda wildcards: jobs.cpus(PLAN.owner(wildcards.key)),
    params:
        code=lambda wildcards: triggers.feature_trigger(PLAN, wildcards.key),
    message:
        "features {wildcards.key}"
    shell:
        "svp stage features --key {wildcards.key:q} &> {log:q}"
