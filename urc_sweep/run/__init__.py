"""From a plan to finished trials: the pure schedule, two executors that obey it, and the launch that ties them."""
