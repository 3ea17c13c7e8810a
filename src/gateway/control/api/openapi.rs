//! The OpenAPI 3.1 document of the server API, made from the types that read requests and write answers.
//!
//! In: the table of methods, the schemas of their types, the configured bounds. Out: JSON at `GET /api/openapi.json`.
//! Invariants: every operation has schemas of its request, its result and its errors; what a schema refuses, the API
//! refuses, too (a test runs schemathesis over it); bounds are those of this process.

use schemars::generate::{Contract, SchemaGenerator, SchemaSettings};
use serde_json::{Map, Value, json};

use super::batch::{BatchRequest, BatchResult};
use super::drain::DrainRequest;
use super::error::{ApiError, MODE_HEADER};
use super::methods::METHODS;
use crate::config::ApiLimits;
use crate::drain::Progress;

const DESCRIPTION: &str = "What backends ask of the node. Requests and responses have the shapes of Centrifugo's HTTP \
API, so its client libraries work. Unknown fields are ignored; fields that cannot be honoured are refused.\n\nAn error \
comes as `{\"error\":{\"code\":…,\"message\":…}}` with status 200, but for 401 (key), 413 (size) and 504 (no answer in \
time: it may have happened). With the header `X-Centrifugo-Error-Mode: transport` the status says it, too: 400 for 106, \
107 and 108; 403 for 103; 404 for 102 and 104; 409 for 113, and for a payload of the kind that the channel's namespace \
does not take; 416 for 112; 429 for 111.\n\nThe older form, `POST /api` with `{\"method\":\"publish\",\"params\":{…}}`, \
is answered, too.";

/// Statuses of errors, and when they come.
const ERRORS: &[(&str, &str)] = &[
    ("400", "Bad request, limit exceeded or not available; only in transport error mode."),
    ("401", "No API key, a wrong one, or none is configured."),
    ("403", "Permission denied; only in transport error mode."),
    ("404", "Unknown channel; only in transport error mode."),
    ("409", "Conflict with the state of the node; only in transport error mode."),
    ("413", "The body or a payload is too large."),
    ("416", "The position cannot be served; only in transport error mode."),
    ("429", "Too many requests, try again; only in transport error mode."),
    ("504", "The shards did not answer in time; it may have happened."),
];

/// The document as text.
pub(super) fn document(limits: &ApiLimits) -> String {
    let mut requests = generator(Contract::Deserialize);
    let mut results = generator(Contract::Serialize);
    let error_schema = results.subschema_for::<ApiError>().to_value();
    let error_body = json!({ "type": "object", "required": ["error"], "properties": { "error": error_schema } });
    let mut paths = Map::new();
    for method in METHODS {
        let result = (method.result)(&mut results).to_value();
        let success = json!({ "type": "object", "required": ["result"], "properties": { "result": result } });
        let request = (method.request)(&mut requests).to_value();
        let post = operation(method.name, method.class.tag(), method.summary, request, success);
        paths.insert(format!("/api/{}", method.name), json!({ "post": post }));
    }
    let request = requests.subschema_for::<BatchRequest>().to_value();
    let success = results.subschema_for::<BatchResult>().to_value();
    let post = operation("batch", "batch", "Several commands in one request.", request, success);
    paths.insert("/api/batch".into(), json!({ "post": post }));

    let request = requests.subschema_for::<DrainRequest>().to_value();
    let result = results.subschema_for::<Progress>().to_value();
    let success = json!({ "type": "object", "required": ["result"], "properties": { "result": result } });
    let summary = "Leave: send clients away paced, then end the process.";
    let post = operation("drain", "node", summary, request.clone(), success.clone());
    let mut get = operation("drain", "node", "How far a drain is.", request, success);
    if let Some(get) = get.as_object_mut() {
        get.remove("requestBody");
        get.insert("operationId".into(), "drain_progress".into());
    }
    paths.insert("/api/drain".into(), json!({ "post": post, "get": get }));

    let mut schemas = results.take_definitions(true);
    schemas.append(&mut requests.take_definitions(true));
    schemas.insert("ErrorResponse".into(), error_body);
    let mut document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Ringway server API",
            "version": env!("CARGO_PKG_VERSION"),
            "description": DESCRIPTION,
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "servers": [{ "url": "/", "description": "The control port." }],
        "security": [{ "ApiKey": [] }],
        "tags": [
            { "name": "channels", "description": "Answered by the owner of a channel." },
            { "name": "users", "description": "Orders about the connections of one user; no error when there are none." },
            { "name": "node", "description": "About the node as a whole." },
            { "name": "batch", "description": "Several of the others at once." },
        ],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "ApiKey": {
                    "type": "apiKey", "in": "header", "name": "X-API-Key",
                    "description": "control.api_key. `Authorization: apikey <key>` does the same.",
                },
            },
            "parameters": { "ErrorMode": {
                "name": MODE_HEADER, "in": "header", "required": false, "schema": { "type": "string" },
                "description": "`transport`: errors have statuses of their own. Any other value changes nothing.",
                "example": "transport",
            } },
            "responses": ERRORS.iter().map(|(status, meaning)| (format!("Error{status}"), json!({
                "description": meaning,
                "content": { "application/json": { "schema": { "$ref": "#/components/schemas/ErrorResponse" } } },
            }))).collect::<Map<_, _>>(),
        },
    });
    bound(&mut document, limits);
    document.to_string()
}

/// OpenAPI 3.1 schemas are JSON Schema 2020-12, which is what this makes.
fn generator(contract: Contract) -> SchemaGenerator {
    let mut settings = SchemaSettings::draft2020_12();
    settings.definitions_path = "/components/schemas".into();
    settings.meta_schema = None;
    settings.contract = contract;
    settings.into_generator()
}

fn operation(name: &str, tag: &str, summary: &str, request: Value, success: Value) -> Value {
    let mut responses = Map::new();
    let failure = json!({ "$ref": "#/components/schemas/ErrorResponse" });
    responses.insert(
        "200".into(),
        json!({
            "description": "The result, or an error unless in transport error mode.",
            "content": { "application/json": { "schema": { "oneOf": [success, failure] } } },
        }),
    );
    for (status, _) in ERRORS {
        responses.insert((*status).into(), json!({ "$ref": format!("#/components/responses/Error{status}") }));
    }
    json!({
        "operationId": name,
        "tags": [tag],
        "summary": summary,
        "parameters": [{ "$ref": "#/components/parameters/ErrorMode" }],
        "requestBody": { "required": true, "content": { "application/json": { "schema": request } } },
        "responses": responses,
    })
}

/// Bounds that the types do not know, because they are configured.
fn bound(document: &mut Value, limits: &ApiLimits) {
    let bounds = [
        ("BroadcastRequest", "channels", "maxItems", limits.broadcast_channels_max),
        ("BatchRequest", "commands", "maxItems", limits.batch_commands_max),
        ("HistoryRequest", "limit", "maximum", limits.history_publications_max),
    ];
    for (schema, field, keyword, value) in bounds {
        if let Some(field) = document.pointer_mut(&format!("/components/schemas/{schema}/properties/{field}")) {
            field[keyword] = value.into();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: ApiLimits = ApiLimits {
        broadcast_channels_max: 11,
        batch_commands_max: 12,
        history_publications_max: 13,
        channels_listed_max: 14,
    };

    fn document_value() -> Value {
        serde_json::from_str(&document(&LIMITS)).expect("is JSON")
    }

    #[test]
    fn every_reference_resolves() {
        fn references(value: &Value, out: &mut Vec<String>) {
            match value {
                Value::Object(map) => {
                    out.extend(map.get("$ref").and_then(Value::as_str).map(str::to_owned));
                    map.values().for_each(|value| references(value, out));
                }
                Value::Array(values) => values.iter().for_each(|value| references(value, out)),
                _ => {}
            }
        }
        let document = document_value();
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 100, "{}", found.len());
        for reference in found {
            let pointer = reference.strip_prefix('#').expect("is local");
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
    }

    #[test]
    fn every_method_is_an_operation_with_its_own_schemas() {
        let document = document_value();
        for name in METHODS.iter().map(|method| method.name).chain(["batch"]) {
            let post = &document["paths"][format!("/api/{name}")]["post"];
            assert_eq!(post["operationId"], name);
            let request = &post["requestBody"]["content"]["application/json"]["schema"]["$ref"];
            assert!(request.as_str().is_some_and(|reference| reference.ends_with("Request")), "{name}: {request}");
        }
    }

    #[test]
    fn every_field_is_described() {
        let document = document_value();
        let schemas = document["components"]["schemas"].as_object().expect("is an object");
        for (name, schema) in schemas.iter().filter(|(name, _)| *name != "ErrorResponse") {
            assert!(schema["description"].is_string(), "{name}");
            for (field, property) in schema["properties"].as_object().into_iter().flatten() {
                let of_type = property.get("$ref").is_some();
                assert!(of_type || property["description"].is_string(), "{name}.{field}: {property}");
            }
        }
    }

    #[test]
    fn configured_bounds_are_in_it() {
        let schemas = &document_value()["components"]["schemas"];
        assert_eq!(schemas["BroadcastRequest"]["properties"]["channels"]["maxItems"], 11);
        assert_eq!(schemas["BatchRequest"]["properties"]["commands"]["maxItems"], 12);
        assert_eq!(schemas["HistoryRequest"]["properties"]["limit"]["maximum"], 13);
    }
}
