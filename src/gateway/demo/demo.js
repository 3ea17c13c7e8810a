// The demo page: one connection and one subscription with the published SDK.
//
// In: port and path from the body's attributes, the two SDK builds from this gateway, what a person clicks.
// Out: WebSocket traffic to the client port. Query parameters fill the form: ?channel=news&encoding=protobuf
'use strict';

const MESSAGES_MAX = 200; // lines kept in the list
const SAMPLES_MAX = 1000; // latencies kept for the percentiles
const SPARKLINE_SAMPLES = 120;
const MEASURE_INTERVAL_MS = 100;

const $ = (id) => document.getElementById(id);
const { clientPort, websocketPath } = document.body.dataset;
const host = location.hostname || '127.0.0.1';
const url = `${location.protocol === 'https:' ? 'wss' : 'ws'}://${host}:${clientPort}${websocketPath}`;
const encoder = new TextEncoder();
const decoder = new TextDecoder();

const sdks = {}; // encoding -> class
let centrifuge = null;
let subscription = null;
let measuring = null;
let measures = 0;
let samples = [];
let received = 0;
let gaps = 0;
let pending = []; // own publishes not yet received, oldest first: a channel keeps the order of one publisher
let position = null; // { offset, epoch } of the last publication

/// Both builds define globalThis.Centrifuge, so they are loaded one after the other.
async function loadSdks() {
  for (const [encoding, file] of [['json', 'centrifuge.js'], ['protobuf', 'centrifuge.protobuf.js']]) {
    await new Promise((resolve, reject) => {
      const script = document.createElement('script');
      script.src = `/demo/${file}`;
      script.onload = resolve;
      script.onerror = () => reject(new Error(`${file} could not be loaded`));
      document.head.append(script);
    });
    sdks[encoding] = globalThis.Centrifuge;
  }
}

function connect() {
  const encoding = $('encoding').value;
  if (centrifuge && centrifuge.encoding !== encoding) {
    // Another encoding is another connection; positions go with the old one.
    forget();
  }
  if (!centrifuge) {
    const client = new sdks[encoding](url);
    client.encoding = encoding;
    client.on('state', (context) => { if (client === centrifuge) showState(context.newState); });
    client.on('connecting', (context) => showEvent(`connecting: ${context.code} ${context.reason}`));
    client.on('connected', (context) => { $('client').textContent = context.client; showEvent('connected'); });
    client.on('disconnected', (context) => showEvent(`disconnected: ${context.code} ${context.reason}`));
    client.on('error', (context) => showEvent(`error: ${context.error.code} ${context.error.message}`));
    centrifuge = client;
  }
  centrifuge.connect();
}

function forget() {
  const old = centrifuge;
  centrifuge = null;
  subscription = null;
  position = null;
  old.disconnect();
  showSubscription('unsubscribed');
}

function subscribe() {
  const channel = $('channel').value.trim();
  if (!channel || !centrifuge) return;
  if (subscription && subscription.channel !== channel) {
    subscription.unsubscribe();
    centrifuge.removeSubscription(subscription);
    subscription = null;
  }
  if (!subscription) {
    position = null;
    subscription = centrifuge.newSubscription(channel);
    const here = subscription;
    here.on('state', (context) => { if (here === subscription) showSubscription(context.newState); });
    here.on('subscribed', (context) => {
      $('recovered').textContent = context.wasRecovering ? (context.recovered ? 'yes' : 'no: history too short') : 'not asked for';
      if (context.streamPosition && !(context.wasRecovering && context.recovered)) {
        position = { ...context.streamPosition };
      }
      showPosition();
    });
    here.on('publication', (context) => onPublication(context));
    here.on('unsubscribed', (context) => { if (context.code) showEvent(`unsubscribed: ${context.code} ${context.reason}`); });
    here.on('error', (context) => showEvent(`subscription error: ${context.error.code} ${context.error.message}`));
  }
  subscription.subscribe();
}

function unsubscribe() {
  if (subscription) subscription.unsubscribe();
}

function onPublication(context) {
  received += 1;
  if (context.offset) {
    if (position && context.offset !== position.offset + 1) gaps += 1;
    position = { offset: context.offset, epoch: position ? position.epoch : '' };
    showPosition();
  }
  const data = context.data instanceof Uint8Array ? parse(decoder.decode(context.data)) : context.data;
  const own = context.info && centrifuge && context.info.client === $('client').textContent ? pending.shift() : undefined;
  const latency = own ? performance.now() - own.sent : null;
  if (own) addSample(latency);
  if (!isMeasure(data)) {
    addLine(context.offset ? `#${context.offset}` : '', data, latency === null ? '' : `${latency.toFixed(2)} ms`);
  }
  $('received').textContent = received;
  $('gaps').textContent = gaps;
}

/// What the measuring button publishes; such lines would push everything else out of the list.
function isMeasure(data) {
  return data !== null && typeof data === 'object' && Object.keys(data).length === 1 && typeof data.measure === 'number';
}

async function publish(data) {
  const channel = $('channel').value.trim();
  const record = { sent: performance.now() };
  if (subscription && subscription.state === 'subscribed') pending.push(record);
  try {
    await centrifuge.publish(channel, centrifuge.encoding === 'protobuf' ? encoder.encode(JSON.stringify(data)) : data);
  } catch (error) {
    pending = pending.filter((other) => other !== record);
    toggleMeasuring(false);
    addLine('error', `publish: ${error.code ?? ''} ${error.message ?? error}`, '', true);
  }
}

function toggleMeasuring(on) {
  clearInterval(measuring);
  measuring = on ? setInterval(() => publish({ measure: (measures += 1) }), MEASURE_INTERVAL_MS) : null;
  $('measure').setAttribute('aria-pressed', String(on));
}

/// JSON when it is JSON, the text itself when it is not.
function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

function addSample(ms) {
  samples.push(ms);
  if (samples.length > SAMPLES_MAX) samples.shift();
  const sorted = [...samples].sort((a, b) => a - b);
  const quantile = (q) => sorted[Math.min(sorted.length - 1, Math.ceil(q * sorted.length) - 1)];
  $('p50').textContent = quantile(0.5).toFixed(2);
  $('p99').textContent = quantile(0.99).toFixed(2);
  $('last').textContent = ms.toFixed(2);
  $('samples').textContent = samples.length;
  drawSparkline();
}

function drawSparkline() {
  const recent = samples.slice(-SPARKLINE_SAMPLES);
  const top = Math.max(1, ...recent);
  const step = 300 / Math.max(1, recent.length - 1);
  const points = recent.map((ms, i) => `${(i * step).toFixed(1)},${(58 - (ms / top) * 54).toFixed(1)}`);
  $('sparkline').firstElementChild.setAttribute('points', points.join(' '));
}

function resetLatency() {
  samples = [];
  for (const id of ['p50', 'p99', 'last']) $(id).textContent = '–';
  $('samples').textContent = '0';
  drawSparkline();
}

function addLine(place, body, latency, error) {
  const line = document.createElement('li');
  if (error) line.className = 'error';
  const time = new Date().toLocaleTimeString([], { hour12: false });
  const text = typeof body === 'string' ? body : JSON.stringify(body);
  for (const [tag, value] of [['span', time], ['span', place], ['div', text], ['span', latency]]) {
    const cell = document.createElement(tag);
    cell.textContent = value;
    line.append(cell);
  }
  const list = $('messages');
  list.prepend(line);
  while (list.children.length > MESSAGES_MAX) list.lastElementChild.remove();
}

function showState(state) {
  $('state').textContent = state;
  $('state').dataset.state = state;
  if (state !== 'connected') {
    toggleMeasuring(false);
    pending = [];
  }
  showButtons();
}

function showSubscription(state) {
  $('subscription').textContent = state;
  if (state !== 'subscribed') {
    toggleMeasuring(false);
    pending = [];
  }
  showButtons();
}

function showPosition() {
  $('position').textContent = position ? `offset ${position.offset}${position.epoch ? `, epoch ${position.epoch}` : ''}` : '–';
}

function showEvent(text) {
  $('event').textContent = text;
}

function showButtons() {
  const state = centrifuge ? centrifuge.state : 'disconnected';
  const subscribed = subscription ? subscription.state : 'unsubscribed';
  $('connect').disabled = state !== 'disconnected' || !sdks.protobuf;
  $('encoding').disabled = state !== 'disconnected';
  $('disconnect').disabled = state === 'disconnected';
  $('subscribe').disabled = !centrifuge || state === 'disconnected' || subscribed !== 'unsubscribed';
  $('unsubscribe').disabled = subscribed === 'unsubscribed';
  $('channel').disabled = subscribed !== 'unsubscribed';
  $('publish').disabled = state !== 'connected';
  $('measure').disabled = subscribed !== 'subscribed';
}

async function start() {
  const query = new URLSearchParams(location.search);
  if (query.has('channel')) $('channel').value = query.get('channel');
  if (query.get('encoding') === 'protobuf') $('encoding').value = 'protobuf';
  $('url').textContent = url;
  $('connect').disabled = true;
  $('connect').onclick = connect;
  $('disconnect').onclick = () => centrifuge && centrifuge.disconnect();
  $('subscribe').onclick = subscribe;
  $('unsubscribe').onclick = unsubscribe;
  $('measure').onclick = () => toggleMeasuring(measuring === null);
  $('reset').onclick = resetLatency;
  $('composer').onsubmit = (event) => {
    event.preventDefault();
    if (!$('publish').disabled) publish(parse($('text').value));
  };
  try {
    await loadSdks();
  } catch (error) {
    showEvent(error.message);
  }
  showButtons();
}

start();
