# The front door: what is studied stands in config/, how it runs in workflow/, where in slurm/.


configfile: "config/default.yaml"


include: "workflow/Snakefile"


localrules:
    all,


rule all:
    default_target: True
    input:
        PLAN.published_file,
        # a table or a figure that was deleted by hand is made again
        rules.tables.output,
        rules.figures.output,
        rules.overlays.output,
        [PLAN.score_file(run) for run in PLAN.runs],
