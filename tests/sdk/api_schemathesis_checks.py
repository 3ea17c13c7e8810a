"""A check for schemathesis: what the description of the API refuses is refused where the API says so, in the body.

By default every error of a command comes with status 200, and errors of single commands of a batch always do; the check
of schemathesis itself looks at statuses only."""

import schemathesis
from schemathesis.core.parameters import ParameterLocation


@schemathesis.check
def refused_in_the_body(ctx, response, case):
    body = case.meta and case.meta.components.get(ParameterLocation.BODY)
    if not body or not body.mode.is_negative or response.status_code != 200:
        return
    answer = response.json()
    refused = "error" in answer or any("error" in reply for reply in answer.get("replies", []))
    assert refused, f"accepted, although the schema refuses it: {answer}"
