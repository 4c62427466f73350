"""Files and commands that start a recipe on a cluster: Slurm, SkyPilot, Ray.

May import errors.
"""
