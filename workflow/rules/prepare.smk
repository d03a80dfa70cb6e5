# The tiny models need the pool alone: they start while the splits are still being drawn.
rule pool:
    output:
        PLAN.data_dir("{key}") / "pool" / "summary.json",
    log:
        "logs/shared/pool/{key}.log",
    priority: 110
    resources:
        mem_mb=2000,
        runtime=60,
        cpus_per_task=1,
    params:
        code=lambda wildcards: triggers.pool_trigger(PLAN, wildcards.key),
    message:
        "pool {wildcards.key}"
    shell:
        "svp stage pool --key {wildcards.key:q} &> {log:q}"


# Raw data that are not there are told by the job: the plan is made without them.
rule prepare:
    input:
        lambda wildcards: PLAN.raw_inputs(wildcards.key),
    output:
        multiext(
            f"{PLAN.data_dir('{key}')}/prepared/",
            "summary.json",
            "images.parquet",
            "annotations.parquet",
            "expressions.parquet",
        ),
    log:
        "logs/shared/prepare/{key}.log",
    priority: 100
    resources:
        mem_mb=lambda wildcards, attempt: jobs.preparation_mb(
            PLAN.owner(wildcards.key), attempt
        ),
        runtime=60,
        cpus_per_task=1,
    params:
        code=lambda wildcards: triggers.prepare_trigger(PLAN, wildcards.key),
    message:
        "prepare {wildcards.key}"
    shell:
        "svp stage prepare --key {wildcards.key:q} &> {log:q}"
