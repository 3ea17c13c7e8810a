// node's `ws` with permessage-deflate against the echo of `deflate_peers.rs`, whose address is argument 1.
import WebSocket from 'ws';

const url = process.argv[2];
const ANSWER = 'permessage-deflate; server_no_context_takeover; client_no_context_takeover';

function messages() {
  const list = [];
  for (let i = 0; i < 800; i++) list.push({ id: (i * 7919) % 10007, price: (i * 31) % 1013, side: i % 3 ? 'buy' : 'sell' });
  const random = Buffer.alloc(50_000);
  for (let i = 0, x = 1; i < random.length; i++) random[i] = (x = (x * 1103515245 + 12345) % 2147483648) >> 16;
  // Repeats at a distance that only a window of 32 KiB reaches.
  const far = Buffer.concat([random.subarray(0, 20_000), random.subarray(0, 20_000)]);
  return ['', 'x', 'Hello', 'größe '.repeat(100), JSON.stringify(list.slice(0, 20)), JSON.stringify(list), 'x'.repeat(100_000), random, far, Buffer.alloc(0), Buffer.alloc(100_000)];
}

async function exchange(name, perMessageDeflate, answer) {
  const socket = new WebSocket(url, { perMessageDeflate });
  let extensions;
  socket.on('upgrade', (response) => { extensions = response.headers['sec-websocket-extensions']; });
  await new Promise((resolve, reject) => { socket.once('open', resolve); socket.once('error', reject); });
  if (extensions !== answer) throw new Error(`${name}: answered ${extensions}`);
  // Twice: nothing may be left over from the first time.
  for (const message of [...messages(), ...messages()]) {
    const answered = new Promise((resolve, reject) => {
      socket.once('message', (data, binary) => resolve([data, binary]));
      socket.once('close', (code, reason) => reject(new Error(`${name}: closed with ${code} ${reason}`)));
      socket.once('error', reject);
    });
    const whole = Buffer.from(message);
    if (whole.length > 1000) {
      const cut = whole.length >> 1;
      const binary = typeof message !== 'string';
      socket.send(whole.subarray(0, cut), { fin: false, binary, compress: true });
      socket.ping('between');
      socket.send(whole.subarray(cut), { fin: true, binary, compress: true });
    } else {
      socket.send(message, { compress: true });
    }
    const [data, binary] = await answered;
    if (!whole.equals(data) || binary !== (typeof message !== 'string')) throw new Error(`${name}: ${whole.length} bytes came back as ${data.length}`);
    socket.removeAllListeners('close');
    socket.removeAllListeners('error');
    socket.on('error', () => {});
  }
  socket.close();
}

await exchange('by default', { threshold: 0 }, ANSWER);
await exchange('no compression', false, undefined);
await exchange('with a window that fits', { threshold: 0, serverMaxWindowBits: 12 }, `${ANSWER}; server_max_window_bits=12`);
await exchange('with a window that is too small', { threshold: 0, serverMaxWindowBits: 9 }, undefined);
await exchange('that says it all', { threshold: 0, serverNoContextTakeover: true, clientNoContextTakeover: true, clientMaxWindowBits: 10 }, ANSWER);
console.log('COMPLETE');
