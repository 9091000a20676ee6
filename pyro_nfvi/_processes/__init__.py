"""Work over several processes: tasks over executors, and the processes of torchrun."""
