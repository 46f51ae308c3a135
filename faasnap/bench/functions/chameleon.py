# Renders an HTML table of so many cells.
import hashlib
import random

from chameleon import PageTemplate

COLUMNS = 10
TEMPLATE = PageTemplate(
    """<table xmlns="http://www.w3.org/1999/xhtml" xmlns:tal="http://xml.zope.org/namespaces/tal">
<tr tal:repeat="row options['table']"><td tal:repeat="c row"><span tal:attributes="class c" tal:content="c"/></td></tr>
</table>"""
)


def handler(event, context):
    draw = random.Random(event["seed"]).random
    table = [[str(draw()) for _ in range(COLUMNS)] for _ in range(event["size"] // COLUMNS)]
    text = TEMPLATE.render(options={"table": table})
    return {"answer": hashlib.sha256(text.encode()).hexdigest()}
