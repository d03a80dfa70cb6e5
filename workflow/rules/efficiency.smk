# It measures time, so it has the machine to itself: here every core, on Slurm a node (slurm/config.yaml).
rule efficiency:
    input:
        lambda wildcards: [PLAN.weights(run.id) for run in PLAN.timed],
        lambda wildcards: sorted(
            {path for run in PLAN.timed for path in PLAN.run_inputs(run)}
        ),
    output:
        PLAN.efficiency_file,
    log:
        f"logs/{STUDY}/efficiency.log",
    threads: workflow.resource_settings.cores or 1
    resources:
        mem_mb=jobs.memory_mb(PLAN.timed[0], 6000) + jobs.own_weights_mb(PLAN.timed),
        runtime=jobs.minutes(PLAN.timed[0], 120),
        nodes=1,
        gpu=jobs.gpus(PLAN.timed[0]),
        cpus_per_task=jobs.cpus(PLAN.timed[0]),
    params:
        code=lambda wildcards: triggers.efficiency_trigger(PLAN),
    message:
        "time every projector, alone on the machine"
    shell:
        "svp stage efficiency &> {log:q}"
