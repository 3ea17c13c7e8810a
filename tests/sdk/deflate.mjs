// permessage-deflate: npm `centrifuge` over `ws` (which offers it), JSON or Protobuf (argument 1), and headless Chromium:
// what arrives is what was published, in fewer bytes; a client that does not offer it is served beside them.
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { chromium } from 'playwright-core';
import WebSocket from 'ws';
import { ENCODINGS, CONTROL_URL, WS_URL, apiPublish, connected, cutProxy, run, subscribed, until } from './common.mjs';

const encoding = process.argv[2];
const { write } = ENCODINGS[encoding];
const channel = `zip:${encoding}`;
const CHROMIUM = [process.env.CHROMIUM, '/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'];
const LARGE = { text: 'a text that repeats itself, '.repeat(100) };
const SMALL = { n: 1 };
const sockets = [];
const socketClass = (perMessageDeflate) => class extends WebSocket {
  constructor(url, protocols) {
    super(url, protocols, { perMessageDeflate });
    sockets.push(this);
  }
};
let zipped, whole, zippedProxy, wholeProxy;

await run([
  ['negotiated by those that offer it', async () => {
    zippedProxy = await cutProxy();
    wholeProxy = await cutProxy();
    const one = await connected(encoding, zippedProxy.url, { websocket: socketClass(true) });
    assert.match(sockets[0].extensions, /permessage-deflate/);
    const other = await connected(encoding, wholeProxy.url, { websocket: socketClass(false) });
    assert.equal(sockets[1].extensions, '');
    zipped = await subscribed(one, encoding, channel);
    whole = await subscribed(other, encoding, channel);
  }],
  ['large and small payloads', async () => {
    const before = [zippedProxy.bytes.down, wholeProxy.bytes.down];
    const values = [];
    for (let n = 0; n < 20; n++) values.push({ ...LARGE, n }, { ...SMALL, n });
    for (const value of values) await apiPublish(channel, value);
    for (const sub of [zipped, whole]) {
      await until(() => sub.seen.length === values.length, 'all');
      assert.deepEqual(sub.seen.map(({ data }) => data), values);
    }
    const [less, more] = [zippedProxy.bytes.down - before[0], wholeProxy.bytes.down - before[1]];
    if (encoding === 'json') assert.ok(less < more / 4, `${less} of ${more} bytes`);
  }],
  ['what a client compresses is read', async () => {
    const room = await subscribed(await connected(encoding, WS_URL, { websocket: socketClass({ threshold: 0 }) }), encoding, `zip-${encoding}`);
    await room.publish(write(LARGE));
    await until(() => room.seen.length === 1, 'its own');
    assert.deepEqual(room.seen[0].data, LARGE);
  }],
  ['in a browser', async () => {
    const executablePath = CHROMIUM.find((path) => path && existsSync(path));
    const args = ['--no-sandbox', '--disable-gpu', '--no-proxy-server'];
    const browser = await chromium.launch({ executablePath, headless: true, args });
    const page = await browser.newPage();
    await page.goto(`${CONTROL_URL}/demo`);
    const seen = page.evaluate(([url, name]) => new Promise((resolve, reject) => {
      const socket = new WebSocket(url);
      const pushes = [];
      socket.onerror = () => reject(new Error('the WebSocket failed'));
      socket.onopen = () => socket.send('{"id":1,"connect":{}}\n' + JSON.stringify({ id: 2, subscribe: { channel: name } }));
      socket.onmessage = ({ data }) => {
        for (const line of data.split('\n').filter((text) => text.length > 2)) {
          const message = JSON.parse(line);
          if (message.push) pushes.push(message.push.pub.data);
          if (message.subscribe) console.log('subscribed');
        }
        if (pushes.length === 2) resolve({ extensions: socket.extensions, pushes });
      };
    }), [WS_URL, channel]);
    await new Promise((resolve) => page.on('console', (message) => { if (message.text() === 'subscribed') resolve(); }));
    await apiPublish(channel, LARGE);
    await apiPublish(channel, SMALL);
    const { extensions, pushes } = await seen;
    assert.match(extensions, /permessage-deflate/);
    assert.deepEqual(pushes, [LARGE, SMALL]);
    await browser.close();
  }],
]);
