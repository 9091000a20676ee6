"""Colours and settings that the figures of the examples share.

Figures are narrow, with panels below each other, so that they can be read on a phone.
"""

#: Colours of the fit, of what it is compared with (areas, lines), and of data.
FIT, REFERENCE, GREY, INK = "#1f6f9f", "#b9bfc9", "#6b7280", "#3c4350"
#: Width in inches at which the letters of STYLE can be read on a screen of 360 pixels.
WIDTH = 5.6
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
