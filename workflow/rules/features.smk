rule features:
    input:
        lambda wildcards: PLAN.feature_inputs(wildcards.key),
    output:
        PLAN.feature_dir("{key}") / "index.json",
    log:
        "logs/shared/features/{key}.log",
    priority: lambda wildcards: 85 if wildcards.key.startswith("sam-") else 80
    threads: lambda wildcards: PLAN.threads(PLAN.owner(wildcards.key))
    resources:
        mem_mb=4000,
        runtime=240,
        cpus_per_task=lambda wildcards: PLAN.threads(PLAN.owner(wildcards.key)),
    params:
        code=lambda wildcards: triggers.feature_trigger(PLAN, wildcards.key),
    message:
        "features {wildcards.key}"
    shell:
        "svp stage features --key {wildcards.key} &> {log}"
