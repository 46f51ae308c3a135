package faasnap

import (
	"context"
	"fmt"

	"github.com/volley-run/volley/faasnap/guest"
	"github.com/volley-run/volley/function"
	"github.com/volley-run/volley/sandbox/agent"
	"github.com/volley-run/volley/sandbox/agent/frame"
	"github.com/volley-run/volley/sandbox/image"
)

// BuildImage builds a function of package type Image from an unpacked container
// image, and adds it. The image can be released afterwards.
func (s *Service) BuildImage(ctx context.Context, f *Function, img *image.Image) error {
	if err := checkName("function", f.Name); err != nil {
		return err
	}
	if err := s.FillImage(ctx, f, img); err != nil {
		return err
	}
	return s.AddFunction(f)
}

// FillImage is BuildImage without adding the function.
func (s *Service) FillImage(ctx context.Context, f *Function, img *image.Image) error {
	kernel, err := s.cfg.Builder.Kernel(ctx)
	if err != nil {
		return fmt.Errorf("build function %s: %w", f.Name, err)
	}
	root, user, err := s.cfg.Builder.Image(ctx, img)
	if err != nil {
		return fmt.Errorf("build function %s: %w", f.Name, err)
	}
	f.PackageType = function.Image
	f.User = (*frame.Credential)(&user)
	f.Image = s.bootable(guest.Image{Initrd: kernel.Initrd, Root: root, CommandLine: guest.CommandLine}, kernel)
	f.ImageDefaults = &agent.ImageDefaults{
		EntryPoint: img.Config.EntryPoint, Command: img.Config.Command, Env: img.Config.Env, WorkingDir: img.Config.WorkingDir,
	}
	return nil
}

// bootable returns an image with the kernel in the form that the driver boots.
func (s *Service) bootable(image guest.Image, kernel guest.Kernel) guest.Image {
	image.Kernel = kernel.Image
	if s.cfg.Driver.Name() == "firecracker" {
		image.Kernel = kernel.ELF
		image.CommandLine += " " + guest.ResetCommandLine
	}
	return image
}
