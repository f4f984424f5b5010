"""How lines and bars of every plot are told apart.

Okabe and Ito's colours keep apart for the colour-blind; markers, dashes and hatches do without any colour.
"""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "X", "P")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 1)))
HATCHES = ("", "///", "...", "xx", "\\\\\\", "--")
