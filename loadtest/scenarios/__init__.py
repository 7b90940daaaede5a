"""What locust runs: one scenario a file. `make loadtest SCENARIO=NAME`, or `locust -f loadtest/scenarios/NAME.py`."""
