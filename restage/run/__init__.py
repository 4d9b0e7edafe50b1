"""What every stage works in: the folder of a run, progress and stops, models, and facts about the machine."""
