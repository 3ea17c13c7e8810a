// The unidirectional WebSocket with npm `ws`, no SDK: connect push, publications with positions, pings, recovery from the
// positions that the client gives, the disconnect push before a close.
import assert from 'node:assert/strict';
import WebSocket from 'ws';
import { WS_URL, api, apiCount, apiPublish, run, token, until } from './common.mjs';

const URL = WS_URL.replace('/connection/websocket', '/connection/uni_websocket');
const news = 'backend:uni';
const inbox = 'inbox:#uni';
const connect = { token: token({ sub: 'uni', channels: [news] }) };

/// A connection with all its messages and its close.
function listen(url, first) {
  const socket = new WebSocket(url);
  const self = { socket, messages: [], pings: 0, close: undefined };
  if (first) socket.on('open', () => socket.send(JSON.stringify(first)));
  socket.on('message', (bytes) => {
    // One message may carry several pushes, as on the other endpoint.
    for (const line of bytes.toString().split('\n').filter((text) => text.length > 0)) {
      const push = JSON.parse(line);
      if (Object.keys(push).length === 0) self.pings += 1;
      else self.messages.push(push);
    }
  });
  socket.on('close', (code, reason) => { self.close = { code, reason: reason.toString() }; });
  socket.on('error', () => {});
  self.publications = (channel) => self.messages.filter((push) => push.channel === channel && push.pub).map(({ pub }) => pub);
  return self;
}

let one, position;

await run([
  ['connect, in the first message', async () => {
    one = listen(URL, connect);
    await until(() => one.messages.length > 0, 'the connect push');
    const push = one.messages[0].connect;
    assert.ok(push.client.length > 0);
    assert.deepEqual(Object.keys(push.subs).sort(), [news, inbox].sort());
    assert.equal(push.ping, 1);
    position = { epoch: push.subs[news].epoch, offset: push.subs[news].offset ?? 0 };
  }],
  ['publications', async () => {
    await apiPublish(news, { text: 'hello' });
    await apiPublish(inbox, 'for you');
    await until(() => one.messages.length === 3, 'both');
    const [{ data, offset }] = one.publications(news);
    assert.deepEqual([data, offset], [{ text: 'hello' }, 1]);
    assert.equal(one.publications(inbox)[0].data, 'for you');
    position.offset = one.publications(news)[0].offset;
  }],
  ['subscribed by the API', async () => {
    await api('subscribe', { user: 'uni', channel: 'backend:uni-later' });
    await until(() => one.messages.some((push) => push.subscribe && push.channel === 'backend:uni-later'), 'told');
    await api('unsubscribe', { user: 'uni', channel: 'backend:uni-later' });
    await until(() => one.messages.some((push) => push.unsubscribe && push.channel === 'backend:uni-later'), 'told of the end');
    await api('rpc', { user: 'uni', data: [1] });
    await until(() => one.messages.some((push) => push.message), 'a message');
  }],
  ['pings, which need no answer', async () => {
    await until(() => one.pings >= 3, 'three pings');
    assert.equal(one.close, undefined);
  }],
  ['the disconnect push before the close', async () => {
    await api('disconnect', { user: 'uni', disconnect: { code: 4001, reason: 'move on' } });
    await until(() => one.close, 'closed');
    const { code, reason } = one.messages.at(-1).disconnect;
    assert.deepEqual([code, reason, one.close], [4001, 'move on', { code: 4001, reason: 'move on' }]);
  }],
  ['what was missed, by position; connect in the query', async () => {
    await apiCount(news, 5);
    const request = { ...connect, subs: { [news]: { recover: true, ...position } } };
    const two = listen(`${URL}?cf_connect=${encodeURIComponent(JSON.stringify(request))}`);
    await until(() => two.messages.length > 0, 'the connect push');
    const { recovered, publications } = two.messages[0].connect.subs[news];
    assert.equal(recovered, true);
    assert.deepEqual(publications.map(({ offset, data }) => [offset, data]), [[2, 1], [3, 2], [4, 3], [5, 4], [6, 5]]);
    await apiPublish(news, 'live');
    await until(() => two.publications(news).length === 1, 'live');
    two.socket.close();
  }],
  ['refusals are closes', async () => {
    const forged = listen(URL, { token: token({ sub: 'uni' }, 'another secret') });
    await until(() => forged.close, 'closed');
    assert.equal(forged.close.code, 3500);
    const nonsense = listen(URL, ['no', 'request']);
    await until(() => nonsense.close, 'closed');
    assert.equal(nonsense.close.code, 3501);
  }],
]);
