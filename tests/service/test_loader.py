"""Loading, activation and rollback: what is served, and that no request notices a change."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest

from model_store import packed_ids
from model_store.bundle import Bundle, parse_manifest, seal
from model_store.errors import StoreError
from model_store.store import Store
from service import loader as loading
from service.caches import CacheOptions, open_cache
from service.loader import Loader, NothingLoaded
from service.metrics import Metrics
from service.shared_ids import SharedIds
from tests.service.conftest import Client, Serve, until, write_bundle

pytestmark = pytest.mark.anyio


def loader(store: Store, *refs: str, default: str | None = None) -> Loader:
    """A loader over a store, with the embedded cache."""
    cache = open_cache("memory://", CacheOptions(1.0, 60, 0.01))
    return Loader(
        store=store,
        ids=SharedIds(None),
        cache=cache,
        refs=refs,
        default=default,
        tolerance=1e-4,
        max_fresh_items=100,
        metrics=Metrics(),
    )


async def answers_with(client: Client, version: str) -> bool:
    """Whether that version answers."""
    return await client.version() == version


async def activate(client: Client, version: str) -> Any:
    """POST /models/ctr/activate."""
    return await client.post("/models/ctr/activate", json={"version": version})


async def test_an_activation_moves_the_alias_and_what_is_served(serve: Serve, store: Store) -> None:
    """The reply names both versions, the store remembers, the next request gets the new one."""
    async with serve() as client:
        before = await client.version()
        reply = await activate(client, "2")
        after = await client.version()

    assert (before, after) == ("1", "2")
    assert {key: reply.json()[key] for key in ("name", "version", "previous")} == {
        "name": "ctr",
        "version": "2",
        "previous": "1",
    }
    assert store.aliases("ctr") == {"prod": "2"}


async def test_what_loading_freed_is_handed_back(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the start as at an activation."""
    calls: list[None] = []
    monkeypatch.setattr(loading, "give_back", lambda: calls.append(None))
    async with serve() as client:
        assert len(calls) == 1
        await activate(client, "2")
        assert len(calls) == 2


async def test_a_rollback_goes_back_to_what_was_before(serve: Serve, store: Store) -> None:
    """It undoes the activation, in the store as well; before the first there is nothing."""
    async with serve() as client:
        await activate(client, "2")
        reply = await client.post("/models/ctr/rollback")
        version = await client.version()
        again = await client.post("/models/ctr/rollback")

    assert (reply.status_code, reply.json()["version"], version) == (200, "1", "1")
    assert store.aliases("ctr") == {"prod": "1"}
    assert (again.status_code, again.json()["code"]) == (409, "activation_conflict")


async def test_a_rollback_passes_over_deleted_versions(serve: Serve, store: Store) -> None:
    """What is gone cannot be gone back to."""
    async with serve() as client:
        await activate(client, "2")
        store.delete("ctr", "1")
        reply = await client.post("/models/ctr/rollback")

    assert (reply.status_code, reply.json()["code"]) == (409, "activation_conflict")


async def test_activating_what_is_served_changes_nothing(serve: Serve) -> None:
    """It is answered, and costs no loading."""
    async with serve() as client:
        ranking = client.service.parts.loader.resolve("ctr")
        reply = await activate(client, "prod")

        assert reply.json()["previous"] == "1"
        assert client.service.parts.loader.resolve("ctr") is ranking


@pytest.mark.parametrize(
    ("name", "version", "status", "code"),
    [
        ("ctr", "9", 404, "version_not_found"),
        ("ctr", "no such?", 404, "version_not_found"),
        ("other", "1", 404, "model_not_found"),
    ],
)
async def test_what_the_store_lacks_cannot_be_activated(
    serve: Serve, name: str, version: str, status: int, code: str
) -> None:
    """404 says what there is."""
    async with serve() as client:
        reply = await client.post(f"/models/{name}/activate", json={"version": version})

    assert (reply.status_code, reply.json()["code"]) == (status, code)


def damage(store: Store, version: str) -> None:
    """Change a byte of a published version."""
    path = Path(store.url) / f"ctr/versions/{version}/model.onnx"
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


async def test_a_damaged_version_never_serves(serve: Serve, store: Store) -> None:
    """409 says what is wrong with it; the old one goes on, and the alias stays."""
    damage(store, "2")
    async with serve() as client:
        reply = await activate(client, "2")
        version = await client.version()

    assert (reply.status_code, reply.json()["code"]) == (409, "activation_conflict")
    assert "sha256" in reply.json()["detail"]
    assert version == "1"
    assert store.aliases("ctr") == {"prod": "1"}


async def test_a_version_that_misses_its_golden_scores_never_serves(
    serve: Serve, store: Store, bundles: Path
) -> None:
    """Followed by the alias it is refused as well: /readyz notes it, /models says why."""
    store.publish(bundles / "off", "ctr")
    async with serve() as client:
        asked = await activate(client, "3")
        store.set_alias("ctr", "prod", "3")
        await client.service.parts.loader.sync()
        version = await client.version()
        ready = await client.get("/readyz")
        model = (await client.get("/models/ctr")).json()
        store.set_alias("ctr", "prod", "1")
        await client.service.parts.loader.sync()
        mended = await client.get("/readyz")

    assert (asked.status_code, asked.json()["code"]) == (409, "activation_conflict")
    assert version == "1"
    assert ready.status_code == 200
    assert [note["code"] for note in ready.json()["notes"]] == ["version_refused"]
    assert (model["state"], model["version"]) == ("ready", "1")
    assert "golden case 0" in model["fault"]
    assert mended.json()["notes"] == []


@pytest.mark.parametrize(("tolerance", "status"), [(0.0, 409), (4e-3, 409), (6e-3, 200)])
async def test_a_bundle_says_how_far_its_golden_scores_may_be_off(
    serve: Serve, store: Store, tmp_path: Path, tolerance: float, status: int
) -> None:
    """An int8 graph's last bits differ between processors; the setting is the least for all."""
    folder = write_bundle(tmp_path / "int8", golden_shift=5e-3, golden_tolerance=tolerance)
    store.publish(folder, "ctr")
    async with serve() as client:
        reply = await activate(client, "3")

    assert reply.status_code == status


async def test_a_refused_version_is_not_tried_again_at_once(store: Store, bundles: Path) -> None:
    """Trying costs seconds of a core: one refusal holds for a while."""
    store.publish(bundles / "off", "ctr")
    loading = loader(store, "ctr")
    await loading.load_all()
    store.set_alias("ctr", "prod", "3")
    await loading.sync()
    refused = loading.slots[0].refused
    await loading.sync()

    assert refused is not None
    assert loading.slots[0].refused is refused


async def test_the_aliases_of_the_store_are_followed(serve: Serve, store: Store) -> None:
    """An alias that was moved elsewhere is taken in by polling, without any request failing."""
    async with serve(store_poll_s=0.01) as client:
        store.set_alias("ctr", "prod", "2")
        await until(lambda: answers_with(client, "2"))

        assert (await client.get("/models/ctr")).json()["version"] == "2"


async def test_a_store_that_goes_away_is_told_and_outlived(serve: Serve, store: Store) -> None:
    """What is loaded serves on; /readyz notes it, to anybody, and so without the store's path."""
    async with serve() as client:
        shutil.move(store.url, f"{store.url}-away")
        await client.service.parts.loader.sync()
        version = await client.version()
        notes = (await client.get("/readyz")).json()["notes"]
        versions = (await client.get("/models/ctr")).json()["versions"]
        moved = await activate(client, "2")

    assert version == "1"
    assert [note["code"] for note in notes] == ["version_refused"]
    assert store.url not in notes[0]["detail"]
    assert versions == []
    assert moved.status_code == 404


MOVES = [
    (kind, step)
    for kind in StoreError.__subclasses__()
    for step in ("resolve", "open", "history", "set_alias")
]


@pytest.mark.parametrize(("kind", "step"), MOVES)
async def test_whatever_the_store_refuses_an_activation_with_is_a_problem(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, kind: type[StoreError], step: str
) -> None:
    """404 for what is not there and 409 for the rest, never 500; the old version goes on."""

    def refuse(*_: object, **__: object) -> None:
        raise kind("no")

    async with serve() as client:
        monkeypatch.setattr(client.service.parts.loader._store, step, refuse)
        reply = await activate(client, "2")
        version = await client.version()

    if step == "history":  # what is read for comparison only: no alias yet is no obstacle
        assert (reply.status_code, version) == (200, "2")
    else:
        assert reply.json()["code"] in {"version_not_found", "activation_conflict"}
        assert version == "1"


async def test_a_bundle_that_vanishes_while_it_is_read_is_a_conflict(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Collected between opening and reading, or on a disk that fails: 409, the old one goes on."""

    def vanish(*_: object) -> None:
        raise FileNotFoundError(2, "No such file", "candidate_ids.npy")

    async with serve() as client:
        monkeypatch.setattr(Bundle, "item_tensors", vanish)
        reply = await activate(client, "2")
        version = await client.version()

    assert (reply.status_code, reply.json()["code"]) == (409, "activation_conflict")
    assert version == "1"


async def test_ids_that_are_too_long_are_refused(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond what their ends can count."""
    monkeypatch.setattr(packed_ids, "MOST_BYTES", 9)

    with pytest.raises(NothingLoaded, match="the ids take 10 bytes; expected up to 9"):
        await loader(store, "ctr").load_all()


async def test_versions_of_one_catalogue_have_one_index(serve: Serve) -> None:
    """Their ids are read and indexed once: an activation with the same ones costs neither."""
    async with serve() as client:
        before = client.service.parts.loader.resolve("ctr").table
        await activate(client, "2")
        after = client.service.parts.loader.resolve("ctr").table

    assert before is not after
    assert before.ids is after.ids  # type: ignore[union-attr]


async def test_a_second_activation_at_the_same_time_conflicts(serve: Serve) -> None:
    """One of a model at once; the other is told so."""
    async with serve() as client:
        replies = await asyncio.gather(activate(client, "2"), activate(client, "2"))

    assert sorted(reply.status_code for reply in replies) == [200, 409]


async def test_requests_never_notice_a_swap(serve: Serve) -> None:
    """Hundreds of requests run while versions change under them: all are answered, whole."""
    async with serve() as client:
        swapping = True
        replies: list[Any] = []

        async def ask() -> None:
            while swapping:
                replies.append(await client.rank(["i1", "i2", "x"], user={"age": 3}))

        askers = [asyncio.create_task(ask()) for _ in range(4)]
        for version in ("2", "1", "2", "1"):
            assert (await activate(client, version)).status_code == 200
        swapping = False
        await asyncio.gather(*askers)

    assert {reply.status_code for reply in replies} == {200}
    by_version: dict[str, set[str]] = {}
    for reply in replies:
        body = reply.json()
        by_version.setdefault(body["version"], set()).add(f"{body['digest']}{body['items']}")
    assert set(by_version) == {"1", "2"}
    assert all(len(answers) == 1 for answers in by_version.values())


async def test_a_pinned_version_stays(serve: Serve) -> None:
    """name@version follows no alias and cannot be moved."""
    async with serve(models=("ctr@1",)) as client:
        reply = await activate(client, "2")
        await client.service.parts.loader.sync()

        assert await client.version() == "1"
    assert (reply.status_code, reply.json()["code"]) == (409, "activation_conflict")
    assert "pinned" in reply.json()["detail"]


async def test_an_alias_moved_by_somebody_else_meanwhile_conflicts(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compare and set: who decided on what is no longer true is refused, and nothing is swapped."""
    loading = loader(store, "ctr")
    await loading.load_all()
    original = loading._build

    async def build_slowly(name: str, version: str) -> Any:
        store.set_alias("ctr", "prod", "2")
        return await original(name, version)

    monkeypatch.setattr(loading, "_build", build_slowly)
    store.set_alias("ctr", "prod", "2")
    store.set_alias("ctr", "prod", "1")
    with pytest.raises(Exception, match="prod is expected to name 1, it names 2"):
        await loading.activate("ctr", "2")

    assert loading.resolve("ctr").version == "1"


async def test_several_entries_of_one_model_are_told_apart(serve: Serve, store: Store) -> None:
    """The first one is what the bare name means; the others answer to alias and version."""
    store.set_alias("ctr", "slim", "2")
    async with serve(models=("ctr@slim", "ctr@prod")) as client:
        answers = {
            ref: await client.version(ref) for ref in ("ctr", "ctr@slim", "ctr@prod", "ctr@1")
        }
        default = await client.rank(["i1"])
        listed = (await client.get("/models")).json()["models"]

    assert answers == {"ctr": "2", "ctr@slim": "2", "ctr@prod": "1", "ctr@1": "1"}
    assert default.headers["x-model-version"] == "2"
    assert [(model["ref"], model["default"]) for model in listed] == [
        ("ctr@slim", True),
        ("ctr@prod", False),
    ]


async def test_a_request_without_a_model_needs_a_default(
    serve: Serve, store: Store, bundles: Path
) -> None:
    """One model is the default by itself; of several one must be chosen, or named."""
    store.publish(bundles / "bare", "bare")
    store.set_alias("bare", "prod", "1")
    async with serve(models=()) as client:
        nameless = await client.rank(["i1"])
    async with serve(models=("ctr", "bare"), default_model="bare") as client:
        chosen = await client.rank(["i1"])

    assert (nameless.status_code, nameless.json()["errors"][0]["pointer"]) == (422, "/model")
    assert "bare, ctr" in nameless.json()["detail"]
    assert chosen.json()["model"] == "bare"


async def test_one_broken_model_leaves_the_others_serving(serve: Serve, store: Store) -> None:
    """Its requests get 503 model_not_ready, /readyz names it; it is taken in once it is mended."""
    async with serve(models=("ctr", "late")) as client:
        reply = await client.rank(["i1"], model="late")
        ready = await client.get("/readyz")
        model = (await client.get("/models/late")).json()
        version = await client.version()
        store.publish(write_bundle(Path(store.url).parent / "late", name="late"), "late")
        store.set_alias("late", "prod", "1")
        await client.service.parts.loader.sync()
        mended = await client.version("late")

    assert (reply.status_code, reply.json()["code"]) == (503, "model_not_ready")
    assert reply.headers["retry-after"] == "2"
    assert (ready.status_code, ready.json()["reasons"][0]["model"]) == (503, "late")
    assert store.url in model["fault"]
    assert store.url not in reply.text + ready.text
    assert (model["state"], model["version"], model["card"]) == ("failed", None, None)
    assert (version, mended) == ("1", "1")


async def test_a_damaged_alias_keeps_only_its_own_model_from_serving(
    serve: Serve, store: Store, bundles: Path
) -> None:
    """With no list of models too: the others are served and shown as ever, the one is told."""
    store.publish(bundles / "bare", "bare")
    (Path(store.url) / "bare/aliases").mkdir()
    (Path(store.url) / "bare/aliases/prod.json").write_text("{")
    async with serve(models=()) as client:
        version = await client.version("ctr")
        ready = await client.get("/readyz")
        ctr = (await client.get("/models/ctr")).json()
        bare = (await client.get("/models/bare")).json()
        activated = await client.post("/models/bare/activate", json={"version": "1"})

    assert version == "1"
    assert [reason["model"] for reason in ready.json()["reasons"]] == ["bare"]
    assert [each["problem"] for each in ctr["versions"]] == [None, None]
    assert "bare/aliases/prod.json is damaged" in bare["fault"]
    assert "bare/aliases/prod.json is damaged" in bare["versions"][0]["problem"]
    assert (activated.status_code, activated.json()["code"]) == (409, "activation_conflict")


async def test_a_bundle_answers_under_the_name_it_is_published_as(
    serve: Serve, store: Store, bundles: Path
) -> None:
    """Replies, metrics and activations say what callers ask for, not what it was built as."""
    for version in ("1", "2"):
        store.publish(bundles / "one", "renamed", version)
    store.set_alias("renamed", "prod", "1")
    async with serve(models=("renamed",)) as client:
        ranked = await client.rank(["i1", "x"], model="renamed")
        activated = await client.post("/models/renamed/activate", json={"version": "2"})
        metrics = (await client.get("/metrics")).text

    assert ranked.json()["model"] == activated.json()["name"] == "renamed"
    assert 'slimrank_cold_candidates_total{model="renamed"} 1.0' in metrics
    assert 'model="ctr"' not in metrics


async def test_a_model_without_an_alias_yet_can_be_activated(serve: Serve, store: Store) -> None:
    """The first activation sets the alias."""
    store.publish(write_bundle(Path(store.url).parent / "late", name="late"), "late")
    async with serve(models=("ctr", "late")) as client:
        reply = await client.post("/models/late/activate", json={"version": 1})
        rolled = await client.post("/models/late/rollback")

    assert (reply.status_code, reply.json()["previous"]) == (200, None)
    assert rolled.status_code == 409
    assert store.aliases("late") == {"prod": "1"}


@pytest.mark.parametrize(
    ("refs", "default", "said"),
    [
        (("nothing",), None, "nothing"),
        (("ctr@9",), None, "ctr@9: .*no version or alias"),
        (("Not A Name",), None, "expected"),
        (("ctr",), "other", "default model 'other' is not among ctr"),
    ],
)
async def test_a_start_that_cannot_serve_says_why(
    store: Store, refs: tuple[str, ...], default: str | None, said: str
) -> None:
    """Each configured model with its reason."""
    with pytest.raises(NothingLoaded, match=said):
        await loader(store, *refs, default=default).load_all()


async def test_a_store_without_the_alias_prod_is_told(tmp_path: Path, store: Store) -> None:
    """With nothing configured, every bundle with the alias prod is served; none is an error."""
    shutil.rmtree(Path(store.url) / "ctr/aliases")
    with pytest.raises(NothingLoaded, match="no bundle with the alias prod"):
        await loader(store).load_all()


async def test_a_bundle_whose_graph_is_no_graph_is_refused(store: Store, tmp_path: Path) -> None:
    """Sealed, but not loadable: an activation says so."""
    folder = write_bundle(tmp_path / "bad")
    (folder / "model.onnx").write_bytes(b"no graph")
    _seal_again(folder)
    store.publish(folder, "ctr")
    loading = loader(store, "ctr")
    await loading.load_all()

    with pytest.raises(Exception, match="the graph cannot be loaded"):
        await loading.activate("ctr", "3")


async def test_a_bundle_that_contradicts_itself_is_refused(store: Store, tmp_path: Path) -> None:
    """A golden request of no shape, a manifest of other inputs: refused, never an accident."""
    folder = write_bundle(tmp_path / "golden")
    (folder / "golden.json").write_text('[{"request": {"candidates": 3}, "scores": [1.0]}]')
    _seal_again(folder)
    store.publish(folder, "ctr")
    other = write_bundle(tmp_path / "inputs")
    _seal_again(other, without="request_ids")
    store.publish(other, "ctr")
    short = write_bundle(tmp_path / "short")
    (short / "golden.json").write_text('[{"request": {"candidates": ["i1"]}, "scores": []}]')
    _seal_again(short)
    store.publish(short, "ctr")
    loading = loader(store, "ctr")
    await loading.load_all()

    for version, said in (
        ("3", "Expected"),
        ("4", "the manifest declares"),
        ("5", "1 scores, expected 0"),
    ):
        with pytest.raises(Exception, match=said):
            await loading.activate("ctr", version)


def _seal_again(folder: Path, without: str | None = None) -> None:
    """Seal a bundle whose files were changed, or whose manifest forgets an input."""
    manifest = parse_manifest((folder / "manifest.json").read_bytes(), "test")
    inputs = tuple(spec for spec in manifest.inputs if spec.name != without)
    seal(folder, manifest.model_copy(update={"inputs": inputs}))


async def test_following_goes_on_after_an_accident(serve: Serve, store: Store) -> None:
    """A worker that stopped following would go stale in silence: it starts anew."""
    async with serve(store_poll_s=0.01) as client:
        loading = client.service.parts.loader
        sync, failed = loading.sync, asyncio.Event()

        async def fail_once() -> None:
            loading.sync = sync  # type: ignore[method-assign]
            failed.set()
            raise RuntimeError("accident")

        loading.sync = fail_once  # type: ignore[method-assign]
        await failed.wait()
        store.set_alias("ctr", "prod", "2")
        await until(lambda: answers_with(client, "2"))
