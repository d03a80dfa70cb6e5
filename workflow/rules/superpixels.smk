rule superpixels:
    input:
        lambda wildcards: PLAN.superpixel_inputs(wildcards.key),
    output:
        PLAN.superpixel_dir("{key}") / "manifest.json",
    log:
        "logs/shared/superpixels/{key}.log",
    priority: 85
    threads: lambda wildcards: jobs.cpus(PLAN.owner(wildcards.key))
    resources:
        mem_mb=lambda wildcards: jobs.memory_mb(PLAN.owner(wildcards.key), 4000),
        runtime=lambda wildcards: jobs.minutes(PLAN.owner(wildcards.key), 240),
        nodes=1,
        gpu=lambda wildcards: jobs.gpus(PLAN.owner(wildcards.key)),
        cpus_per_task=lambda wildcards: jobs.cpus(PLAN.owner(wildcards.key)),
    params:
        code=lambda wildcards: triggers.superpixel_trigger(PLAN, wildcards.key),
    message:
        "superpixels {wildcards.key}"
    shell:
        "svp stage superpixels --key {wildcards.key:q} &> {log:q}"
