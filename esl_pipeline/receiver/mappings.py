"""The store-mapping API: which shop feeds which store, and with what policy. For administrators only."""

import logging
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Annotated, Any
from uuid import UUID

import orjson
from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import JSONResponse
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.errors import BufferError
from esl_pipeline.labels.policy import Policy, said_of
from esl_pipeline.model.label_server import DEFAULT_SERVER
from esl_pipeline.printable import printable
from esl_pipeline.receiver.answers import Answers, Unprocessable, refusals
from esl_pipeline.receiver.body import read_body
from esl_pipeline.receiver.tokens import Gate, admitted
from esl_pipeline.sources.registry import SOURCES
from esl_pipeline.storable import unstorable

BODY_LIMIT_BYTES = 65_536
BODY_SECONDS = 5

# In the context of a validation: the label servers that the settings name.
SERVERS_KNOWN = "label_servers"

log = logging.getLogger(__name__)


# A code stands in addresses at the label server, so nothing may come through that changes a path.
_CODE = re.compile(r"[A-Za-z0-9_-]{1,32}")


def _store_code(text: str) -> str:
    if not _CODE.fullmatch(text):
        raise ValueError("must be 1 to 32 letters, digits, '_' or '-'")
    return text


def _system(text: str) -> str:
    if text not in SOURCES:
        raise ValueError(f"must be one of {', '.join(SOURCES)}")
    return text


def _shop_id(text: str, info: ValidationInfo) -> str:
    """The shop's canonical id, at the source that is named beside it, or at any where none is."""
    named = info.data.get("source_system")
    sources = [SOURCES[named]] if named in SOURCES else list(SOURCES.values())
    for source in sources:
        if shop := source.shop_id(text):
            return shop
    raise ValueError(f"must be the shop's id, like {' or '.join(source.example_shop for source in sources)}")


def _label_server(text: str, info: ValidationInfo) -> str:
    """One that the settings name (SERVERS_KNOWN of the context), or the one where every store is at first."""
    known = {DEFAULT_SERVER, *(info.context or {}).get(SERVERS_KNOWN, ())}
    if text not in known:
        raise ValueError(f"must be a label server of the settings: {', '.join(sorted(known))}")
    return text


def _text(pattern: re.Pattern[str]) -> dict[str, Any]:
    return {"type": "string", "pattern": f"^{pattern.pattern}$"}


def _known(schema: dict[str, Any]) -> None:
    """The sources that are registered, for the OpenAPI page."""
    schema["enum"] = list(SOURCES)


def _forms(schema: dict[str, Any]) -> None:
    """How their shops are called."""
    schema["pattern"] = f"^(?:{'|'.join(source.shop_pattern for source in SOURCES.values())})$"


SourceSystem = Annotated[str, AfterValidator(_system), Field(json_schema_extra=_known)]
SourceStoreId = Annotated[str, AfterValidator(_shop_id), Field(json_schema_extra=_forms)]
StoreCode = Annotated[str, AfterValidator(_store_code), WithJsonSchema(_text(_CODE))]
ServerName = Annotated[
    str, AfterValidator(_label_server), WithJsonSchema({"type": "string", "maxLength": 32})
]


class NewMapping(BaseModel):
    """A store mapping to be made."""

    model_config = ConfigDict(extra="forbid")

    source_system: SourceSystem
    source_store_id: SourceStoreId
    hipoink_store_code: StoreCode
    label_server: ServerName = DEFAULT_SERVER
    """Where the store is, by its name in the settings. Left out: where it is already, or at the default."""
    is_active: StrictBool = True
    is_dry_run: StrictBool = False
    settings: Policy = Policy()
    shared: StrictBool = False
    """It is meant that other shops feed the store as well. A word of this call alone; it is not kept."""


def _left_out_not_null(schema: dict[str, Any]) -> None:
    schema["minProperties"] = 1
    for described in schema["properties"].values():
        del described["default"]
        described.update(described.pop("anyOf")[0])


class MappingChange(BaseModel):
    """The fields of a store mapping that change; the others stay. `settings` are replaced as a whole.

    shared: as of a new mapping, where the store changes. label_server: all labels of the store are pushed to the other
    one then; what hangs at the one before stays there.
    """

    model_config = ConfigDict(extra="forbid", json_schema_extra=_left_out_not_null)

    source_system: SourceSystem | None = None
    source_store_id: SourceStoreId | None = None
    hipoink_store_code: StoreCode | None = None
    label_server: ServerName | None = None
    is_active: StrictBool | None = None
    is_dry_run: StrictBool | None = None
    settings: Policy | None = None
    shared: StrictBool | None = None

    @field_validator("*", mode="before")
    @classmethod
    def _given_means_set(cls, value: object) -> object:
        if value is None:
            raise ValueError("must not be null; leave the field out to keep it")
        return value


class StoreMapping(BaseModel):
    """A store mapping as kept."""

    id: str
    source_system: str
    source_store_id: str
    hipoink_store_code: str
    label_server: str
    is_active: bool
    is_dry_run: bool
    settings: dict[str, Any]
    created_at: str | None = None
    updated_at: str | None = None
    remark: str | None = None
    """What a change has left behind, in a sentence."""


_REFUSALS = refusals(
    {
        401: "No valid token.",
        403: "The token may not do this, or no token is valid at all.",
        429: "Too many wrong tokens came from this address.",
        503: "The buffer cannot be used now.",
    }
)
_UNKNOWN = refusals({404: "There is no store mapping with this id."})
_UNFIT: Answers = {
    **refusals(
        {
            408: "The body came too slowly.",
            409: "This shop is mapped to this store already, or others are and `shared` is not said, or feed it at "
            "another label server.",
            413: "The body is too long.",
        }
    ),
    422: {"model": Unprocessable, "description": "Fields are missing or wrong."},
}


def mapping_router(gate: Gate, buffer: Buffer) -> APIRouter:
    """`/api/store-mappings/`, for those whom the gate admits: reading, and with the scope write changing."""

    may_read, may_write = admitted(gate, "read"), admitted(gate, "write")
    router = APIRouter(prefix="/api/store-mappings", tags=["store mappings"], responses=_REFUSALS)

    # The token comes first: nothing of a stranger's body is read.
    @router.post(
        "/", status_code=201, response_model=StoreMapping, openapi_extra=_takes(NewMapping), responses=_UNFIT
    )
    def create(by: Annotated[str, may_write], body: Annotated[bytes, Depends(_body)]) -> dict[str, Any]:
        return buffer.mapping_create(_fields(NewMapping, body, buffer.label_servers), by=by)

    @router.get("/", response_model=list[StoreMapping], dependencies=[may_read])
    def list_all() -> list[dict[str, Any]]:
        return buffer.mapping_list()

    @router.get("/{mapping_id}", response_model=StoreMapping, dependencies=[may_read], responses=_UNKNOWN)
    def get(mapping_id: str) -> dict[str, Any]:
        return _found(buffer.mapping_get(_uuid(mapping_id)))

    @router.put(
        "/{mapping_id}",
        response_model=StoreMapping,
        openapi_extra=_takes(MappingChange),
        responses=_UNKNOWN | _UNFIT,
    )
    def change(
        mapping_id: str, by: Annotated[str, may_write], body: Annotated[bytes, Depends(_body)]
    ) -> dict[str, Any]:
        key = _uuid(mapping_id)
        changes = _fields(MappingChange, body, buffer.label_servers)
        if not changes.keys() - {"shared"}:
            raise _unprocessable("body", "must hold at least one field to change")
        return _found(buffer.mapping_update(key, changes, by=by))

    return router


def buffer_failure(_request: Request, error: BufferError) -> JSONResponse:
    """The answer to a buffer error that no route has handled."""
    code = error.code or ""
    if code == "23505":
        detail: object = (
            "A store mapping with this source_system, source_store_id and hipoink_store_code exists already."
        )
        return JSONResponse({"detail": detail}, 409)
    if code == "23P01":  # another shop feeds the store, or feeds it elsewhere
        return JSONResponse({"detail": error.message}, 409)
    if code.startswith("22"):  # SQLSTATE class 22: the data itself is refused
        return JSONResponse({"detail": [{"field": "settings", "message": error.message}]}, 422)
    log.error("the buffer cannot serve the store-mapping API: %a", str(error))
    return JSONResponse({"detail": "The buffer cannot be used now; try again."}, 503, {"Retry-After": "5"})


async def _body(request: Request) -> bytes:
    return await read_body(request, BODY_LIMIT_BYTES, BODY_SECONDS)


def _fields(model: type[BaseModel], body: bytes, servers: Sequence[str]) -> dict[str, Any]:
    """The given fields of a JSON body, checked; HTTPException 422 names each wrong field, not its value.

    servers: the label servers of the settings.
    """
    try:
        value = orjson.loads(body)
        if wrong := [{"field": printable(at) or "body", "message": says} for at, says in unstorable(value)]:
            raise HTTPException(422, wrong)
        given = model.model_validate(value, context={SERVERS_KNOWN: servers})
    except orjson.JSONDecodeError as error:
        raise _unprocessable("body", f"is not JSON: {error.msg} at character {error.pos}") from None
    except ValidationError as error:
        wrong_fields = [
            {
                "field": ".".join(map(str, wrong["loc"])) or "body",
                "message": said_of_field(wrong),
            }
            for wrong in error.errors(include_url=False, include_context=False, include_input=False)
        ]
        raise HTTPException(422, wrong_fields) from None
    return given.model_dump(mode="json", exclude_unset=True)


def said_of_field(wrong: Mapping[str, Any]) -> str:
    """What pydantic found wrong with a field of a mapping, in words."""
    at = wrong["loc"]
    is_setting = at[:1] == ("settings",) and len(at) > 1
    return said_of(wrong, at[1:]) if is_setting else str(wrong["msg"]).removeprefix("Value error, ")


def _unprocessable(field: str, message: str) -> HTTPException:
    return HTTPException(422, [{"field": field, "message": message}])


def _uuid(text: str) -> str:
    try:
        key = str(UUID(text))
    except ValueError:
        key = ""
    if key != text.lower():
        raise _unknown()
    return key


def _found(mapping: dict[str, Any] | None) -> dict[str, Any]:
    if mapping is None:
        raise _unknown()
    return mapping


def _unknown() -> HTTPException:
    return HTTPException(404, "There is no store mapping with this id.")


@cache
def _takes(model: type[BaseModel]) -> dict[str, Any]:
    """The request body for the OpenAPI page; FastAPI does not see it, because the token comes first."""
    schema = model.model_json_schema()
    # Written out, because the page has no place for definitions from here.
    written_out = _without_references(schema, schema.pop("$defs", {}))
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": written_out}}}}


def _without_references(schema: Any, definitions: dict[str, Any]) -> Any:
    if isinstance(schema, list):
        return [_without_references(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if reference := schema.get("$ref"):
        named = definitions[reference.removeprefix("#/$defs/")]
        schema = named | {key: value for key, value in schema.items() if key != "$ref"}
    return {key: _without_references(value, definitions) for key, value in schema.items()}
