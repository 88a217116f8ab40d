"""Reports for people: what a run showed, and pages on which experts rate pairs.

Every page is one local file that loads nothing from anywhere and that only its owner can read.
"""

from relict_lightning.report.html import write_report
from relict_lightning.report.onset_summary import OnsetSummary
from relict_lightning.report.pictures import pair_strip
from relict_lightning.report.private_file import write_private
from relict_lightning.report.rating import read_ratings, write_rating_page

__all__ = ["OnsetSummary", "pair_strip", "read_ratings", "write_private", "write_rating_page", "write_report"]
