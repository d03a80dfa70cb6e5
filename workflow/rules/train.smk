# Checkpoints lie in results/<study>/checkpoints/, outside declared outputs: Snakemake deletes an output before it reruns its job.
rule train_stage1:
    input:
        lambda wildcards: PLAN.run_inputs(PLAN.trainable[wildcards.run]),
        lambda wildcards: PLAN.choices(PLAN.trainable[wildcards.run]),
        lambda wildcards: trained.twin_weights(PLAN, PLAN.trainable[wildcards.run], 1),
    output:
        PLAN.weights("{run}", 1),
    log:
        f"logs/{STUDY}/train/{{run}}.stage1.log",
    priority: lambda wildcards: jobs.train_priority(PLAN.trainable[wildcards.run])
    threads:
        lambda wildcards: jobs.cpus(
            PLAN.trainable[wildcards.run],
            PLAN.trainable[wildcards.run].training.workers,
        )
    resources:
        mem_mb=lambda wildcards: jobs.memory_mb(
            PLAN.trainable[wildcards.run],
            3000,
            PLAN.trainable[wildcards.run].training.workers,
        ),
        runtime=lambda wildcards: jobs.minutes(PLAN.trainable[wildcards.run], 720),
        nodes=1,
        gpu=lambda wildcards: jobs.gpus(
            PLAN.trainable[wildcards.run],
            PLAN.trainable[wildcards.run].training.workers,
        ),
        cpus_per_task=lambda wildcards: jobs.cpus(
            PLAN.trainable[wildcards.run],
            PLAN.trainable[wildcards.run].training.workers,
        ),
    params:
        stage=1,
        code=lambda wildcards: triggers.train_trigger(
            PLAN, PLAN.trainable[wildcards.run], 1
        ),
    message:
        "train {wildcards.run}, stage 1 (language model frozen)"
    shell:
        "svp stage train --run {wildcards.run:q} --stage {params.stage} &> {log:q}"


use rule train_stage1 as train_stage2 with:
    input:
        lambda wildcards: PLAN.run_inputs(PLAN.trainable[wildcards.run]),
        lambda wildcards: PLAN.choices(PLAN.trainable[wildcards.run]),
        PLAN.weights("{run}", 1),
        lambda wildcards: trained.twin_weights(PLAN, PLAN.trainable[wildcards.run], 2),
    output:
        PLAN.weights("{run}", 2),
    log:
        f"logs/{STUDY}/train/{{run}}.stage2.log",
    params:
        stage=2,
        code=lambda wildcards: triggers.train_trigger(
            PLAN, PLAN.trainable[wildcards.run], 2
        ),
    message:
        "train {wildcards.run}, stage 2 (with LoRA)"
