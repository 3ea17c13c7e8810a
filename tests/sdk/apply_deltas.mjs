// Applies deltas as npm `fossil-delta` and as the SDK's two codecs do, and makes deltas of its own.
// In: a JSON list of { old, new, text, delta } on stdin, all bytes in hex. Out: per case a line with the delta that
// `fossil-delta` makes, in hex. Ends with exit code 0 only when every delta gave the new payload.
import { applyDelta, createDelta } from 'fossil-delta';
import { Centrifuge as JsonCentrifuge } from 'centrifuge';
import { Centrifuge as ProtobufCentrifuge } from 'centrifuge/build/protobuf';
import WebSocket from 'ws';

// What the SDK does with a publication that says `delta`. The clients are never connected.
const [json, protobuf] = [JsonCentrifuge, ProtobufCentrifuge].map((Sdk) => {
  const client = new Sdk('ws://127.0.0.1:9/', { websocket: WebSocket });
  return (data, old) => client._codec.applyDeltaIfNeeded({ delta: true, data }, old).newPrevValue;
});

const chunks = [];
for await (const chunk of process.stdin) chunks.push(chunk);
const bytes = (hex) => new Uint8Array(Buffer.from(hex, 'hex'));
const answers = JSON.parse(Buffer.concat(chunks).toString()).map((one, index) => {
  const [old, fresh, delta] = [bytes(one.old), bytes(one.new), bytes(one.delta)];
  const check = (who, result) => {
    if (Buffer.compare(result, fresh) !== 0) throw new Error(`case ${index}: ${who} gives something else`);
  };
  check('fossil-delta', applyDelta(old, delta));
  check('the protobuf codec', protobuf(delta, old));
  if (one.text) {
    const text = new TextDecoder('utf-8', { fatal: true }).decode(delta);
    check('the JSON codec', json(text, old));
  }
  return Buffer.from(createDelta(old, fresh)).toString('hex');
});
console.log(answers.join('\n'));
