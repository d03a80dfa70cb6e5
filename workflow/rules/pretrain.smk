# SAM first: superpixels, the longest chain, wait for it.
rule pretrain:
    input:
        lambda wildcards: PLAN.pretrain_inputs(wildcards.key),
    output:
        PLAN.model_dir("{key}") / "done.json",
    log:
        "logs/shared/pretrain/{key}.log",
    priority: lambda wildcards: jobs.pretrain_priority(wildcards.key)
    threads: lambda wildcards: jobs.cpus(PLAN.owner(wildcards.key))
    resources:
        mem_mb=3000,
        runtime=120,
        cpus_per_task=lambda wildcards: jobs.cpus(PLAN.owner(wildcards.key)),
    params:
        code=lambda wildcards: triggers.pretrain_trigger(PLAN, wildcards.key),
    message:
        "pretrain {wildcards.key}"
    shell:
        "svp stage pretrain --key {wildcards.key:q} &> {log:q}"
