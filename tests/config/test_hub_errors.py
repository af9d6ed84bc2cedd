import httpx2
import pytest
from huggingface_hub import errors

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.hub_errors import hub_errors


def answer(status: int) -> httpx2.Response:
    return httpx2.Response(status, request=httpx2.Request("GET", "https://huggingface.co/api/models/owner/model"))


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (errors.GatedRepoError("gated", response=answer(403)), "owner/model is gated; accept its terms at https"),
        (errors.RepositoryNotFoundError("none", response=answer(404)), "the Hub has no model owner/model, or it is"),
        (
            errors.RevisionNotFoundError("none", response=answer(404)),
            "model.revision: owner/model has no revision",
        ),
        (errors.HfHubHTTPError("busy", response=answer(503)), "the Hub answered 503 for owner/model; try again later"),
        (errors.OfflineModeIsEnabled("offline"), "is not downloaded and HF_HUB_OFFLINE is set"),
        (httpx2.ConnectError("no route"), r"the Hub cannot be reached for owner/model \(ConnectError\)"),
        (OSError(28, "No space left on device"), "cannot be downloaded .*free disk space"),
        (RuntimeError("Data processing error: request failed"), r"cannot be downloaded \(Data .*check the network"),
    ],
)
def test_every_fault_while_a_model_is_fetched_is_one_line(raised: Exception, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught, hub_errors("model", "owner/model", "main"):
        raise raised
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("model.")
