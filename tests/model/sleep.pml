/* How a rank sleeps on a peer's counter, and is woken (wait_for and publish in
 * csrc/comm/cpu/protocol.h), for SPIN: without slices of time, so that a wake-up that is lost is a
 * rank that sleeps for ever.
 *
 * A publisher of EVENTS events and two peers, each waiting for every one of them.
 *
 *   -DRELAXED   the publisher looks for sleepers before it counts: the fault that sequentially
 *               consistent steps exclude, which must be found
 */
#define EVENTS 3
#define PEERS 2

byte counter, sleepers;
byte asleep;        /* a bit for each peer that the system has put to sleep */

proctype Publisher() {
  byte e = 0;
  bool seen;
  do
  :: e < EVENTS ->
#ifdef RELAXED
     seen = sleepers > 0;
     counter++;
#else
     counter++;
     seen = sleepers > 0;
#endif
     if
     :: seen -> asleep = 0
     :: else
     fi;
     e++
  :: else -> break
  od
}

proctype Peer(byte me) {
  byte target = 1, count;
  do
  :: target <= EVENTS ->
     do
     :: counter >= target -> break
     :: else ->
        sleepers++;
        count = counter;
        if
        :: count < target ->
           /* The system compares and puts to sleep in one step. */
           atomic {
             if
             :: counter == count -> asleep = asleep | (1 << me)
             :: else
             fi
           };
           (asleep & (1 << me)) == 0
        :: else
        fi;
        sleepers--
     od;
     target++
  :: else -> break
  od
}

init {
  atomic { run Publisher(); run Peer(0); run Peer(1) }
}
