"""Load matplotlib for charts in files, without any window."""


def pyplot():
    """Return matplotlib's pyplot, or None where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
