"""How the embedded fmnist teacher was trained, and how its model card is measured.

An example that uses gas_nb and is no part of it: the notebooks of nbs/examples/fmnist_teacher tell
the story and run it, the modules here hold its code. They import each other from left to right:

    config  network  loss  optimiser  state  training        classifier  card
"""
