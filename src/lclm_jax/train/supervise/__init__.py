"""What watches over a run: spikes, non-finite updates, preemption, stragglers, a stalled loader."""
