"""What the four reports say: a file a report, a row a statement, in the order of the report.

Left out is what a report only cites from the experiments of other papers, and what it says of its own doings, such as a
recipe. A new statement needs a row and nothing else.
"""

from helpers.report.claims import amp, pikachu, slim, zoo
from helpers.report.claims.evidence import Claim

CLAIMS: list[Claim] = [*pikachu.CLAIMS, *amp.CLAIMS, *zoo.CLAIMS, *slim.CLAIMS]
