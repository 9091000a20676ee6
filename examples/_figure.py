"""Colours and settings that the figures of the examples share."""

#: Colours of the fit, of what it is compared with (areas, lines), and of data.
FIT, REFERENCE, GREY, INK = "#1f6f9f", "#b9bfc9", "#6b7280", "#3c4350"
#: Settings of matplotlib, for ``plt.rc_context``.
STYLE = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "figure.dpi": 120,
    "font.size": 9,
    "legend.frameon": False,
    "savefig.dpi": 160,
}
