"""The buffer's calls for people: who feeds which store, who is connected, who may, and how it stands."""

from collections.abc import Mapping, Sequence
from typing import Any

from esl_pipeline.buffer.door import Door, Row
from esl_pipeline.labels.mapping import StoreMapping
from esl_pipeline.model.shop import Shop, shop_key


class PeopleCalls(Door):
    """A part of Buffer: mappings, connections, tokens, what people look at and decide. Their rows are plain dicts."""

    # Store mappings

    def mapping_create(self, fields: Mapping[str, Any], *, by: str | None = None) -> Row:
        """A new store mapping, made by whom; BufferError with code 23505 when shop and store are mapped already."""
        return self._call("esl_mapping_create", **fields, by=by)

    def mapping_list(self) -> list[Row]:
        """All store mappings, oldest first, as people read them."""
        return list(self._call("esl_mapping_list")["mappings"])

    def mappings(self, *, shop: Shop | None = None) -> list[StoreMapping]:
        """All store mappings, or those of a shop, oldest first, as code reads them."""
        found = map(StoreMapping.of, self.mapping_list())
        return [mapping for mapping in found if shop is None or shop_key(mapping.shop) == shop_key(shop)]

    def active_mappings(self, *, shop: Shop | None = None) -> list[StoreMapping]:
        """Those that are active: whose labels follow the shop."""
        return [mapping for mapping in self.mappings(shop=shop) if mapping.is_active]

    def mapping_get(self, mapping_id: str) -> Row | None:
        """One store mapping, or None."""
        found = self._call("esl_mapping_list", id=mapping_id)["mappings"]
        return found[0] if found else None

    def mapping_update(
        self, mapping_id: str, changes: Mapping[str, Any], *, by: str | None = None
    ) -> Row | None:
        """Change a mapping and, if it is active, have its shop's labels evaluated again; None when there is none."""
        return self._call("esl_mapping_update", id=mapping_id, **changes, by=by)

    def mapping_history(self, *, store: str | None = None, limit: int = 50) -> list[Row]:
        """Who made and changed mappings, newest first -> [{at, by, mapping_id, old, new}]."""
        return list(self._call("esl_mapping_history", store=store, limit=limit)["changes"])

    def owner_settle(self, *, shop: Mapping[str, str], thing: str | None = None, by: str) -> list[str]:
        """Say that a contested thing (product:1; None: all open ones) is this shop's -> its things."""
        return list(self._call("esl_owner_settle", **shop, thing=thing, by=by)["things"])

    # How shops are connected

    def connection_set(
        self, shop: Mapping[str, str], subscriptions: str, by: str | None = None, *, anew: bool = False
    ) -> Row:
        """A shop is connected, its subscriptions made per shop ("api") or by the app ("toml") -> the connection.

        Said again it changes nothing, unless subscriptions had to be made or mended (anew): then the first webhook is
        awaited anew.
        """
        return self._call("esl_connection_set", **shop, subscriptions=subscriptions, by=by, anew=anew)

    def connection_end(self, shop: Mapping[str, str], by: str | None = None) -> Row | None:
        """A shop's subscriptions were removed -> the connection; None when there is none."""
        return self._call("esl_connection_end", **shop, by=by)

    def connection_list(self, *, shops: Sequence[Mapping[str, str]] | None = None) -> list[Row]:
        """Of all connected and mapped shops, or of these: subscriptions ("api", "toml", None: not connected by us),
        connected_at, first_webhook_at (since then), last_webhook_at, last_api_version, refused, refused_since, …"""
        answer = self._call("esl_connection_list", shops=None if shops is None else list(shops))
        return list(answer["connections"])

    def refusals_note(self, *, receiver: str, refused: Sequence[Row]) -> list[Row]:
        """What a receiver's process has counted of wrong signatures -> the mapped shops, for which it counts."""
        return list(self._call("esl_refusals_note", receiver=receiver, refused=list(refused))["mapped"])

    # Tokens of the store-mapping API

    def token_add(self, *, name: str, sha256: str, scope: str, days: int | None = None) -> Row:
        """Keep a token's hash; BufferError with code 23505 when the name was used before."""
        return self._call("esl_token_add", name=name, sha256=sha256, scope=scope, days=days)

    def token_list(self) -> list[Row]:
        """All tokens, oldest first, without their hashes."""
        return list(self._call("esl_token_list")["tokens"])

    def token_revoke(self, name: str) -> Row | None:
        """Refuse a token from now on; None when there is none of this name."""
        return self._call("esl_token_revoke", name=name)

    def token_check(self, sha256: str) -> Row:
        """Whether any token is valid, and the one with this hash -> {any, token}."""
        return self._call("esl_token_check", sha256=sha256)

    # For people

    def status(self, *, shops: Sequence[Mapping[str, str]] | None = None) -> Row:
        """Counts per store and shop, open findings, label servers that are down, triggers that wait; of all shops or of
        these."""
        return self._call("esl_status", shops=None if shops is None else list(shops))

    def findings(
        self,
        *,
        mapping_id: str | None = None,
        store: str | None = None,
        level: str | None = None,
        check: str | None = None,
        limit: int = 1_000,
        after: Sequence[str] | None = None,
    ) -> list[Row]:
        """Open findings by level, check, variant and mapping; after: those four of the last one seen."""
        answer = self._call(
            "esl_findings",
            mapping_id=mapping_id,
            store=store,
            level=level,
            check=check,
            limit=limit,
            after=after,
        )
        return list(answer["findings"])

    def findings_folded(
        self, *, store: str | None = None, level: str | None = None, limit: int = 1_000
    ) -> tuple[list[Row], list[Row]]:
        """The first open findings but the warnings that nearly every variant of a store has -> (findings, those
        warnings: [{hipoink_store_code, source_store_id, check_name, reason, action, variants, of_variants}])."""
        answer = self._call("esl_findings", store=store, level=level, limit=limit, fold=True)
        return list(answer["findings"]), list(answer["shared"])

    def preview(
        self,
        *,
        store: str | None = None,
        shop: Mapping[str, str] | None = None,
        shops: Sequence[Mapping[str, str]] | None = None,
        limit: int = 20,
    ) -> list[Row]:
        """How each mapping's labels stand and which differ from the label server, old beside new; `limit` of each."""
        return list(self._call("esl_preview", store=store, shop=shop, shops=shops, limit=limit)["mappings"])

    def console_search(
        self, *, codes: Sequence[str], text: str, store: str | None = None, limit: int = 50
    ) -> list[Row]:
        """The labels that somebody means who typed the text or scanned a code, the surest first."""
        answer = self._call("esl_console_search", codes=list(codes), text=text, store=store, limit=limit)
        return list(answer["found"])

    def trace(self, code: str, *, store: str | None = None, limit: int = 20) -> list[Row]:
        """From a label back to its pushes, variant and webhooks, one row per store."""
        return list(self._call("esl_trace", code=code, store=store, limit=limit)["places"])
