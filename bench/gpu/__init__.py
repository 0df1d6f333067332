"""What `bench/gpu_report.py` measures, a process for each part, and the page that it writes."""
