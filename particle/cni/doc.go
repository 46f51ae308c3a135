// Package cni is Particle as a plugin of the Container Network Interface: a
// container runtime asks for an attachment of a container to a network, and
// the container gets an endpoint.
//
// A network configuration names a Volley network, or declares one that comes
// with the first container and goes with the last. Endpoints are taken from the
// network's particle.Pool under a name that follows from the configuration's
// name, the container's id and the interface, so ADD and DEL may be repeated,
// and GC knows which are left over.
//
// The package needs what particle needs. Errors are those of package types of
// the CNI library, with the codes of the specification or, from 100, those of
// this package. docs/cni.md describes the configuration.
package cni
