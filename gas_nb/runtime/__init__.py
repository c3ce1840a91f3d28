"""What every run stands on: devices, processes, files, pickles, trackers."""
