"""What a run will cost: measured on this machine, by formula on others.

May import every package but export, serving and checks.
"""
