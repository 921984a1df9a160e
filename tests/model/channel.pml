/* The turns of csrc/comm/cuda/channel.h, for SPIN: every interleaving of WORLD ranks' blocks over a
 * few calls, one_shot, two_shot and multicast as kernels.h has them.
 *
 * Checked: what a rank reads is the event that it waited for, whole, from the first look to the last;
 * a slot that others write by multicast is read by nobody meanwhile; a call's signature is that
 * call's on every rank; nobody waits for ever; nobody gives up unless somebody did not come.
 *
 *   -DMORTAL   one rank may stop at any event, as one that stalls; the others' deadlines pass then
 *   -DHEEDLESS (with MORTAL), -DWAITLESS, -DSLOTS=1, -DWORDS=1   faults, which must be found
 */
#ifndef WORLD
#define WORLD 2
#endif
#ifndef SLOTS
#define SLOTS 2
#endif
#ifndef WORDS
#define WORDS 2
#endif
#define WRAP 16   /* counters are modulo this */
#define FIRST 13  /* so that they wrap within the first calls */
#define NONE 255

byte counter[WORLD * WORLD];    /* of rank s, as rank r's memory has it: [r * WORLD + s] */
byte slot[WORLD * SLOTS];       /* which event it holds: NONE while it is written */
byte signature[WORLD * WORLD * WORDS];
bool gone, failed[WORLD];

#define BEHIND(s, target) \
  ((counter[me * WORLD + s] + WRAP - (FIRST + (target)) % WRAP) % WRAP >= WRAP / 2)
#define SLOT(r, e) slot[(r) * SLOTS + (e) % SLOTS]
#define SIGNATURE(r, s) signature[((r) * WORLD + (s)) * WORDS + call % WORDS]
#define ANY_FAILED (failed[0] || failed[1] || failed[WORLD - 1])

inline put() {
  SLOT(me, event) = NONE;
  SLOT(me, event) = event
}

/* Into the slots of all. */
inline put_everywhere() {
  other = 0;
  do
  :: other < WORLD -> SLOT(other, event) = NONE; other++
  :: else -> break
  od;
  other = 0;
  do
  :: other < WORLD -> SLOT(other, event) = event; other++
  :: else -> break
  od;
  other = 0
}

inline exchange() {
#ifdef MORTAL
  if
  :: me == 1 && !gone -> atomic { gone = true; goto end_gone }
  :: true -> skip
  fi;
#endif
  other = 0;
  do
  :: other < WORLD ->
     if
     :: first -> SIGNATURE(other, me) = call
     :: else
     fi;
     counter[other * WORLD + me] = (FIRST + event + 1) % WRAP;
     other++
  :: else -> break
  od;
  other = 0;
#ifndef WAITLESS
  do
  :: other < WORLD && other != me ->
     if
     :: !BEHIND(other, event + 1) -> skip
     :: BEHIND(other, event + 1) && (gone || ANY_FAILED) -> goto give_up
     fi;
     if
     :: first -> assert(SIGNATURE(me, other) == call)
     :: else
     fi;
     other++
  :: other < WORLD && other == me -> other++
  :: else -> break
  od;
#endif
  skip;  /* a d_step may follow, which no loop may leave into */
  d_step { event++; first = false; other = 0 }
}

inline look() {
  d_step {
    other = 0;
    do
    :: other < WORLD -> assert(SLOT(other, event - 1) == event - 1); other++
    :: else -> break
    od;
    other = 0
  }
}

/* Looks at what all have published twice, as something that takes a while. */
inline read() {
  look();
  look()
}

inline one_shot(count) {
  first = true;
  start = event;
  piece = 0;
  do
  :: piece < count -> put(); exchange(); read(); piece++
  :: else -> break
  od;
  call++
}

inline two_shot(count) {
  first = true;
  start = event;
  piece = 0;
  do
  :: piece < count -> put(); exchange(); read(); put(); exchange(); read(); piece++
  :: else -> break
  od;
  call++
}

/* Rank 0 stands for whoever reduces a share: it writes the results of all. */
inline multicast(count) {
  first = true;
  start = event;
  piece = 0;
  do
  :: piece < count ->
     put();
     exchange();
     read();
     if
     :: me == 0 -> put_everywhere()
     :: else
     fi;
     exchange();
     assert(SLOT(me, event - 1) == event - 1);
     piece++
  :: else -> break
  od;
  call++
}

proctype Rank(byte me) {
  byte event = 0, call = 1, start = 0, piece, other;
  bool first;
  one_shot(1);
  two_shot(2);
  one_shot(2);
  multicast(2);
  one_shot(1);
  one_shot(1);
  goto end_done;
give_up:
  assert(gone);
  failed[me] = true;
#ifdef HEEDLESS
  /* The next call's kernel, in the stream already, goes on where the failed call began. */
  event = start;
  put()
#endif
end_gone:
end_done:
  skip
}

init {
  byte r = 0;
  atomic {
    do
    :: r < WORLD * WORLD -> counter[r] = FIRST; r++
    :: else -> break
    od;
    r = 0;
    do
    :: r < WORLD -> run Rank(r); r++
    :: else -> break
    od
  }
}
