//! JSON-RPC 2.0, one message a line: from the bytes of a line to the bytes of its answer. No I/O.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::api::{self, Handler, Hello, METHODS, Method, PROTOCOL, VERSION, Warning};
use crate::refusal::Refusal;

/// The longest request, in bytes, its newline included.
pub const LINE_MAX: usize = 64 * 1024;

/// Why a request got no result: JSON-RPC's error object.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct RpcError {
    /// One of [`code`].
    pub code: i64,
    /// For a person.
    pub message: String,
    /// For a program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<ErrorData>,
}

/// What a program can tell refusals apart by.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ErrorData {
    /// `not_there`, `exists`, `in_use`, `conflict`, `failed` or `half_undone`.
    pub kind: String,
}

/// The error codes. Those from -32700 to -32600 are of the JSON-RPC specification, section 5.1.
pub mod code {
    /// Not JSON.
    pub const PARSE: i64 = -32_700;
    /// JSON, but not a request.
    pub const INVALID_REQUEST: i64 = -32_600;
    /// No such method.
    pub const METHOD_NOT_FOUND: i64 = -32_601;
    /// The method takes other parameters.
    pub const INVALID_PARAMS: i64 = -32_602;
    /// A fault of weft itself.
    pub const INTERNAL: i64 = -32_603;
    /// The client speaks another protocol version.
    pub const PROTOCOL_MISMATCH: i64 = -32_001;
    /// The first request was not `hello`.
    pub const HELLO_FIRST: i64 = -32_002;
    /// The request is too long; the connection is closed.
    pub const TOO_LONG: i64 = -32_003;
    /// Too many clients are connected; the connection is closed.
    pub const TOO_MANY_CLIENTS: i64 = -32_004;
    /// The switch refused; `data.kind` says which way.
    pub const REFUSED: i64 = 1;
}

/// What is remembered between two requests on a connection.
#[derive(Debug, Default)]
pub struct Session {
    greeted: bool,
}

/// A request as it was understood.
struct Request {
    /// `None`: a notification, which gets no answer.
    id: Option<Value>,
    method: String,
    params: Value,
}

impl Session {
    /// Carries out the request in a line; `None` when there is nothing to answer (a notification).
    pub fn answer(&mut self, line: &[u8], handler: &mut dyn Handler) -> Option<String> {
        match parse(line) {
            Err((id, error)) => Some(error_line(&id, &error)),
            Ok(Request { id, method, params }) => {
                let outcome = self.carry_out(&method, params, handler);
                let warnings = handler.take_warnings();
                let id = id?;
                Some(outcome.map_or_else(|error| error_line(&id, &error), |result| result_line(&id, &result, &warnings)))
            }
        }
    }

    fn carry_out(&mut self, method: &str, params: Value, handler: &mut dyn Handler) -> Result<Value, RpcError> {
        let greets = method == Hello::NAME;
        if !greets && !self.greeted {
            return Err(RpcError::hello_first());
        }
        let result = api::dispatch(handler, method, params)?;
        self.greeted |= greets;
        Ok(result)
    }
}

fn result_line(id: &Value, result: &Value, warnings: &[Warning]) -> String {
    let mut answer = json!({ "jsonrpc": "2.0", "id": id, "result": result });
    if !warnings.is_empty() {
        answer["warnings"] = json!(warnings);
    }
    answer.to_string()
}

/// An error as a line of the protocol, without its newline.
#[must_use]
pub fn error_line(id: &Value, error: &RpcError) -> String {
    json!({ "jsonrpc": "2.0", "id": id, "error": error }).to_string()
}

/// The error's counterpart is the id to answer with: null where none could be read (JSON-RPC, section 5).
fn parse(line: &[u8]) -> Result<Request, (Value, RpcError)> {
    let value: Value = serde_json::from_slice(line).map_err(|error| (Value::Null, RpcError::not_json(&error)))?;
    let Value::Object(mut object) = value else {
        let what =
            if value.is_array() { "batches are not supported: send one request a line" } else { "a request is a JSON object" };
        return Err((Value::Null, RpcError::invalid_request(what)));
    };
    let id = object.remove("id");
    if !matches!(id, None | Some(Value::Null | Value::String(_) | Value::Number(_))) {
        return Err((Value::Null, RpcError::invalid_request("\"id\" is a string or a number")));
    }
    match request(object) {
        Ok((method, params)) => Ok(Request { id, method, params }),
        Err(error) => Err((id.unwrap_or(Value::Null), error)),
    }
}

fn request(mut object: Map<String, Value>) -> Result<(String, Value), RpcError> {
    if object.get("jsonrpc").and_then(Value::as_str) != Some("2.0") {
        return Err(RpcError::invalid_request("\"jsonrpc\" must be \"2.0\""));
    }
    let Some(Value::String(method)) = object.remove("method") else {
        return Err(RpcError::invalid_request("\"method\" must be a string"));
    };
    let params = object.remove("params").unwrap_or_else(|| json!({}));
    if !params.is_object() {
        return Err(RpcError::bad_params("\"params\" must be an object: parameters have names here"));
    }
    Ok((method, params))
}

impl RpcError {
    fn new(code: i64, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), data: None }
    }

    fn not_json(error: &serde_json::Error) -> Self {
        Self::new(code::PARSE, format!("not JSON: {error}"))
    }

    fn invalid_request(what: &str) -> Self {
        Self::new(code::INVALID_REQUEST, format!("not a JSON-RPC 2.0 request: {what}"))
    }

    fn hello_first() -> Self {
        let example = json!({ "jsonrpc": "2.0", "id": 0, "method": "hello", "params": { "protocol": PROTOCOL } });
        Self::new(code::HELLO_FIRST, format!("the first request must be hello: {example}"))
    }

    /// There is no such method.
    #[must_use]
    pub fn no_such_method(name: &str) -> Self {
        let name: String = name.chars().take(100).collect();
        let names: Vec<_> = METHODS.iter().map(|method| method.name).collect();
        Self::new(code::METHOD_NOT_FOUND, format!("method {name:?} is not there; there are: {}", names.join(", ")))
    }

    /// The method takes other parameters.
    #[must_use]
    pub fn bad_params(what: impl Into<String>) -> Self {
        Self::new(code::INVALID_PARAMS, what)
    }

    /// A fault of weft itself.
    #[must_use]
    pub fn internal(what: impl Into<String>) -> Self {
        Self::new(code::INTERNAL, what)
    }

    /// The client speaks another protocol version.
    #[must_use]
    pub fn protocol_mismatch(client: u32) -> Self {
        let message = format!(
            "weft {VERSION} speaks protocol {PROTOCOL} on its control socket, and this client speaks {client}: use a client of the same version"
        );
        Self::new(code::PROTOCOL_MISMATCH, message)
    }

    /// The request is too long.
    #[must_use]
    pub fn too_long() -> Self {
        Self::new(code::TOO_LONG, format!("a request has at most {LINE_MAX} bytes; this connection is closed"))
    }

    /// Too many clients are connected.
    #[must_use]
    pub fn too_many_clients(limit: usize) -> Self {
        Self::new(
            code::TOO_MANY_CLIENTS,
            format!("{limit} clients are connected already, which is the limit: close one and try again"),
        )
    }
}

impl From<Refusal> for RpcError {
    fn from(refusal: Refusal) -> Self {
        let data = ErrorData { kind: refusal.kind().to_owned() };
        Self { code: code::REFUSED, message: refusal.to_string(), data: Some(data) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::*;
    use crate::capture::{CaptureAsked, CaptureStarted};
    use crate::config::Config;
    use crate::mirror_handler::{MirrorAdd, MirrorLine};
    use crate::multicast::MulticastInfo;
    use crate::trace::{TraceAnswer, TraceAsked};

    /// Knows nothing but its own version, and how to forget.
    struct Stub {
        flushed: usize,
    }

    #[rustfmt::skip]
    impl Handler for Stub {
        fn hello(&mut self, params: HelloParams) -> Result<HelloAnswer, RpcError> {
            if params.protocol != PROTOCOL {
                return Err(RpcError::protocol_mismatch(params.protocol));
            }
            Ok(HelloAnswer { protocol: PROTOCOL, version: VERSION.to_owned(), pid: 1 })
        }
        fn fdb_flush(&mut self, _: MaybeNetwork) -> Result<Flushed, RpcError> {
            self.flushed += 1;
            Ok(Flushed { entries: self.flushed })
        }
        fn port_list(&mut self, _: Nothing) -> Result<Vec<PortInfo>, RpcError> { Ok(Vec::new()) }
        fn status(&mut self, _: Nothing) -> Result<Status, RpcError> { unreachable!() }
        fn port_add(&mut self, _: PortAdd) -> Result<PortInfo, RpcError> { unreachable!() }
        fn port_set(&mut self, _: PortSet) -> Result<PortInfo, RpcError> { unreachable!() }
        fn port_show(&mut self, _: Named) -> Result<PortInfo, RpcError> { unreachable!() }
        fn port_remove(&mut self, _: Named) -> Result<Named, RpcError> { unreachable!() }
        fn network_add(&mut self, _: NetworkAdd) -> Result<NetworkInfo, RpcError> { unreachable!() }
        fn network_list(&mut self, _: Nothing) -> Result<Vec<NetworkInfo>, RpcError> { unreachable!() }
        fn network_show(&mut self, _: Named) -> Result<NetworkInfo, RpcError> { unreachable!() }
        fn network_remove(&mut self, _: Named) -> Result<Named, RpcError> { unreachable!() }
        fn fdb_add(&mut self, _: FdbAdd) -> Result<FdbLine, RpcError> { unreachable!() }
        fn fdb_remove(&mut self, _: FdbOf) -> Result<FdbOf, RpcError> { unreachable!() }
        fn fdb_list(&mut self, _: MaybeNetwork) -> Result<Vec<FdbLine>, RpcError> { unreachable!() }
        fn multicast_list(&mut self, _: MaybeNetwork) -> Result<Vec<MulticastInfo>, RpcError> { unreachable!() }
        fn lease_list(&mut self, _: MaybeNetwork) -> Result<Vec<LeaseLine>, RpcError> { unreachable!() }
        fn lease_add(&mut self, _: LeaseAdd) -> Result<LeaseLine, RpcError> { unreachable!() }
        fn lease_remove(&mut self, _: LeaseOf) -> Result<LeaseOf, RpcError> { unreachable!() }
        fn network_set(&mut self, _: NetworkSet) -> Result<NetworkInfo, RpcError> { unreachable!() }
        fn forward_add(&mut self, _: ForwardAdd) -> Result<ForwardLine, RpcError> { unreachable!() }
        fn forward_list(&mut self, _: MaybeNetwork) -> Result<Vec<ForwardLine>, RpcError> { unreachable!() }
        fn forward_remove(&mut self, _: ForwardOf) -> Result<ForwardOf, RpcError> { unreachable!() }
        fn nat_list(&mut self, _: MappingsAsked) -> Result<MappingPage, RpcError> { unreachable!() }
        fn nat_show(&mut self, _: Named) -> Result<NatInfo, RpcError> { unreachable!() }
        fn trace(&mut self, _: TraceAsked) -> Result<TraceAnswer, RpcError> { unreachable!() }
        fn mirror_add(&mut self, _: MirrorAdd) -> Result<MirrorLine, RpcError> { unreachable!() }
        fn mirror_list(&mut self, _: Nothing) -> Result<Vec<MirrorLine>, RpcError> { unreachable!() }
        fn mirror_remove(&mut self, _: Named) -> Result<Named, RpcError> { unreachable!() }
        fn capture_start(&mut self, _: CaptureAsked) -> Result<CaptureStarted, RpcError> { unreachable!() }
        fn stats(&mut self, _: Nothing) -> Result<Stats, RpcError> { unreachable!() }
        fn config_show(&mut self, _: Nothing) -> Result<Config, RpcError> { unreachable!() }
        fn take_warnings(&mut self) -> Vec<Warning> { Vec::new() }
    }

    const HELLO: &str = r#"{"jsonrpc":"2.0","id":0,"method":"hello","params":{"protocol":1}}"#;

    fn greeted() -> (Session, Stub) {
        let (mut session, mut stub) = (Session::default(), Stub { flushed: 0 });
        assert!(session.answer(HELLO.as_bytes(), &mut stub).unwrap().contains("\"result\""));
        (session, stub)
    }

    fn answer(line: &str) -> Value {
        let (mut session, mut stub) = greeted();
        serde_json::from_str(&session.answer(line.as_bytes(), &mut stub).unwrap()).unwrap()
    }

    #[test]
    fn an_answer_carries_the_id_of_its_request() {
        for id in ["1", "\"x\"", "null", "-3"] {
            let answer = answer(&format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"port.list"}}"#));
            assert_eq!(answer, json!({ "jsonrpc": "2.0", "id": serde_json::from_str::<Value>(id).unwrap(), "result": [] }));
        }
    }

    #[test]
    fn a_notification_is_carried_out_and_not_answered() {
        let (mut session, mut stub) = greeted();
        assert_eq!(session.answer(br#"{"jsonrpc":"2.0","method":"fdb.flush"}"#, &mut stub), None);
        assert_eq!(session.answer(br#"{"jsonrpc":"2.0","method":"no.such"}"#, &mut stub), None);
        assert_eq!(stub.flushed, 1);
    }

    #[test]
    fn what_is_no_request_gets_the_error_of_the_specification() {
        let cases = [
            ("{", code::PARSE),
            ("", code::PARSE),
            ("\u{fffd}", code::PARSE),
            ("[]", code::INVALID_REQUEST),
            ("1", code::INVALID_REQUEST),
            ("{}", code::INVALID_REQUEST),
            (r#"{"jsonrpc":"1.0","id":1,"method":"status"}"#, code::INVALID_REQUEST),
            (r#"{"jsonrpc":"2.0","id":[],"method":"status"}"#, code::INVALID_REQUEST),
            (r#"{"jsonrpc":"2.0","id":1,"method":5}"#, code::INVALID_REQUEST),
            (r#"{"jsonrpc":"2.0","id":1,"method":"no.such"}"#, code::METHOD_NOT_FOUND),
            (r#"{"jsonrpc":"2.0","id":1,"method":"port.list","params":[]}"#, code::INVALID_PARAMS),
            (r#"{"jsonrpc":"2.0","id":1,"method":"port.list","params":{"x":1}}"#, code::INVALID_PARAMS),
            (r#"{"jsonrpc":"2.0","id":1,"method":"port.show","params":{"name":"../x"}}"#, code::INVALID_PARAMS),
        ];
        for (line, expected) in cases {
            assert_eq!(answer(line)["error"]["code"], expected, "{line}");
        }
    }

    #[test]
    fn deep_nesting_is_an_error_and_not_a_crash() {
        let line = "[".repeat(LINE_MAX);
        assert_eq!(answer(&line)["error"]["code"], code::PARSE);
    }

    #[test]
    fn wrong_parameters_are_named() {
        let line = r#"{"jsonrpc":"2.0","id":1,"method":"port.add","params":{"name":"a","settings":{"queues":17}}}"#;
        let message = answer(line)["error"]["message"].as_str().unwrap().to_owned();
        assert!(message.starts_with("settings.queues: 17 is out of range"), "{message}");
    }

    #[test]
    fn nothing_is_done_before_the_versions_are_known_to_agree() {
        let (mut session, mut stub) = (Session::default(), Stub { flushed: 0 });
        let mut code_of = |line: &str| {
            let answer: Value = serde_json::from_str(&session.answer(line.as_bytes(), &mut stub).unwrap()).unwrap();
            answer["error"]["code"].as_i64()
        };
        let flush = r#"{"jsonrpc":"2.0","id":1,"method":"fdb.flush"}"#;
        assert_eq!(code_of(flush), Some(code::HELLO_FIRST));
        assert_eq!(code_of(&HELLO.replace("\"protocol\":1", "\"protocol\":2")), Some(code::PROTOCOL_MISMATCH));
        assert_eq!(code_of(flush), Some(code::HELLO_FIRST));
        assert_eq!(code_of(HELLO), None);
        assert_eq!(code_of(flush), None);
        assert_eq!(stub.flushed, 1);
    }
}
