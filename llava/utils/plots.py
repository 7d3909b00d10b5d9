"""Charts for files; no window is ever opened."""


def pyplot():
    """matplotlib's pyplot, or None where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
