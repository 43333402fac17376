// Package ipam decides which virtual machine holds which floating IP, and remembers it in a file.
//
// # Life of an address
//
// An address is promised and bound in two steps, because the API server names an object only after the webhook that
// must choose the address has answered:
//
//	Reserve   promised for 45 s, under a claim      the mutating phase: no name, no UID yet
//	Commit    durable before it returns, Pending    the validating phase: name and UID are known
//	Bind      Bound                                 the stored object was seen
//	Release   Released, rests for the quarantine    the virtual machine and all its pods are gone
//	          free                                  lazily: nothing happens at the end of the rest
//
// A promise is in memory, or written ahead: then it is on its way to the disk when Reserve returns, and it is the promise that
// Commit waits for. A process that ends leaves the promises to the next one, which keeps them until it knows what became of
// them (ahead.go).
//
// # The file
//
// A bbolt database with these buckets. An address key is one byte with the family, 4 or 6, and the 4 or 16 bytes of the
// address, so that keys sort as addresses do:
//
//	ledger/format                    = version of this drawing
//	ledger/folded                    = the first entry of the history that the buckets below do not follow yet
//	ledger/promises                  = promises that were written ahead of their Commit and not taken up
//	history/<number: 8 bytes>        = what one transaction did: events, and what each address is since then
//	addresses/<address key>          = Allocations, of that address and of some that follow it
//	owners/<claim><address key>      = namespace, name and UID, for that key and some that follow; the mirror of addresses
//	pools/<name>                     = where the search for the next address goes on, for each family
//	disputes/<address key><uid>      = another virtual machine that claims the address
//
// Values end in a CRC-32C over key and value, so that a damaged page is noticed when it is read. In addresses and owners a
// value of the database is a block of some twenty keys and values, each with its CRC.
//
// One transaction writes one value at the end of the history (some for a large one), which says all of what it changed:
// the allocations with their owners, the cursors of the pools, the claimants. Every so often a transaction also folds the
// oldest of these entries into the other buckets, in the order of their keys, and moves ledger/folded on. So what the
// file says is what the buckets say, and after it the entries from ledger/folded on. One goroutine writes, and takes
// everything that is queued into the same transaction.
//
// Searching happens in memory, in an index of what is held and of what is free; its size follows the number of
// addresses that are held, not the size of the pools.
//
// The package knows no Kubernetes: whether a virtual machine exists is for the caller to find out. It logs nothing; what is
// due (StalePending, a reservation's end) is found when somebody asks.
package ipam
