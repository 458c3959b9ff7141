/* One round on the complete graph: retries, split views, crashes, and a server that asks for what it likes. SPEC 4.3, 4.4.
 *
 * Four clients, C = 1: clients 0, 1, 2 are honest, client 3 is corrupt and gives whatever it is asked for. So t = q = 3,
 * and the corrupt client counts as one signature and one share everywhere. In each attempt the server shows every honest
 * client one of two sets: in SELF the victim survived (its self seed is asked for), in KEY it is lost (its mask key is).
 * The victim is client 0, which never signs its own loss.
 *
 * Variants that must fail: -DT_LOW with -DNO_CERTIFICATE, -DQ_LOW, -DSIGN_FIRST, -DBOTH_KINDS, -DFORGETS_SPENT.
 * -DNO_CERTIFICATE alone must hold for the first assertion: the threshold does not lean on the signatures.
 */
#define HONEST 3
#define ATTEMPTS 3
#define SELF 0
#define KEY 1

#ifdef T_LOW
#define T 2
#else
#define T 3
#endif
#ifdef Q_LOW
#define Q 2
#else
#define Q 3
#endif

mtype = { out, joined, unsaved, signed };

mtype state[HONEST];     /* RAM: lost in a crash */
byte attempt[HONEST];    /* durable: highest attempt joined, from 1 */
byte tuple[HONEST];      /* RAM: what was signed */
bit spent[HONEST];       /* durable */
byte signatures[8];      /* number of honest signatures on (attempt, set); never lost: the server keeps everything */
byte shares[8];          /* number of honest shares of the kind, by attempt: each attempt has secrets of its own */
byte opened[8];          /* honest answers under (attempt, set) */
byte i, a;

#define AT(n, kind) (2 * (n) + (kind))

inline check() {
  a = 1;
  do
  :: a <= ATTEMPTS ->
     /* never t shares of both secrets of the victim */
     assert(!(shares[AT(a, SELF)] + 1 >= T && shares[AT(a, KEY)] + 1 >= T));
     a++
  :: else -> break
  od;
#ifndef NO_CERTIFICATE
  /* at most one set of the round is answered for */
  assert((opened[2] > 0) + (opened[3] > 0) + (opened[4] > 0) + (opened[5] > 0) + (opened[6] > 0) + (opened[7] > 0) <= 1);
#endif
  a = 0
}

inline answer(kind) {
  shares[AT(attempt[i], kind)]++;
#ifdef BOTH_KINDS
  shares[AT(attempt[i], 1 - kind)]++;
#endif
  opened[AT(attempt[i], kind)]++;
  state[i] = out;   /* every share is erased */
  check()
}

init {
  state[0] = out; state[1] = out; state[2] = out;
  do
  :: atomic { select(i : 0 .. 2);
     if
     :: state[i] == out && attempt[i] < ATTEMPTS && !spent[i] ->          /* the server announces a later attempt */
        if
        :: attempt[i]++
        :: attempt[i] + 2 <= ATTEMPTS -> attempt[i] = attempt[i] + 2
        fi;
        state[i] = joined
     :: state[i] == joined ->                                             /* it shows a set; phase 3 */
        if
        :: tuple[i] = SELF
        :: i > 0 -> tuple[i] = KEY
        fi;
#ifndef SIGN_FIRST
#ifndef FORGETS_SPENT
        spent[i] = 1;
#endif
        state[i] = signed;
#else
        state[i] = unsaved;                                               /* a crash may come before the mark */
#endif
        signatures[AT(attempt[i], tuple[i])]++
     :: state[i] == unsaved -> spent[i] = 1; state[i] = signed
#ifdef NO_CERTIFICATE
     :: state[i] == signed -> answer(tuple[i])
#else
     :: state[i] == signed && signatures[AT(attempt[i], tuple[i])] + 1 >= Q -> answer(tuple[i])
#endif
     :: state[i] != out -> state[i] = out; tuple[i] = 0                   /* crash, or abort: the secrets are gone */
     :: else -> skip
     fi }
  od
}
